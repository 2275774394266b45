"""One case from beginning to end: who can, who is right, how long, how much memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import memory, rows, timing
from .baselines import Unavailable
from .cases import DTYPES, Case, Perturb
from .contenders import Contender, contenders, taken
from .flops import executed
from .gate import Gate, Verdict
from .rates import Rates
from .rows import Row
from .work import Work, replayed

if TYPE_CHECKING:
    from .run import Options

RATIOS = {
    "eager": "ratio_to_eager",
    "eager_fp32": "ratio_to_eager_fp32",
    "products": "ratio_to_line",
    "traffic": "ratio_to_line",
}
COPIES = 16
"""Inputs that a graph takes in turn; together with what they make they get a tenth of the free memory."""


@dataclass
class Entry:
    """What became of one contender."""

    contender: Contender
    reason: str = ""
    verdict: Verdict | None = None
    work: Work | None = None
    broken: bool = False
    peak: float | None = None


class Setting(NamedTuple):
    """What all cases of a run share."""

    options: Options
    environment: Row
    machine: Rates


def measure(case: Case, setting: Setting, seconds: float) -> tuple[dict[str, list[Row]], bool]:
    """The rows of a case by clock, and whether each of our implementations that claims it computed it correctly."""
    options = setting.options
    gate = Gate(case, options.device, seeds=1 if options.quick else 5)
    chosen = list(_chosen(case, options))
    if any(contender.compiled and not _slow(contender, options) for contender in chosen):
        torch.compiler.reset()  # else a few cases later the recompile limit turns it silently into eager
    entries = [_enter(contender, case, gate, options) for contender in chosen]
    for entry in entries:
        if entry.work is not None and options.memory and entry.contender.kind != "line":
            entry.peak = memory.peak_extra(case, entry.contender.impl, options.device, options.threads)
    share = seconds / len(options.clocks)
    found = {clock: _timed(case, setting, entries, gate, clock, share) for clock in options.clocks}
    return found, not any(entry.broken for entry in entries)


def _timed(case: Case, setting: Setting, entries: list[Entry], gate: Gate, clock: str, seconds: float) -> list[Row]:
    """The rows of one clock."""
    options = setting.options
    runs: dict[str, timing.Timed] = {}
    notes: dict[str, str] = {}
    for entry in entries:
        if entry.work is not None:
            entry.work.reset()
            name = entry.contender.impl
            runs[name], notes[name] = _graphed(entry, case, gate) if clock == "graph" else (entry.work, "")
    # Beside the memory of all graphs, who has none may not fit any more: that must not end the run.
    reasons = {name: why for name, note in notes.items() if note and (why := _refused(runs[name]))}
    runs = {name: run for name, run in runs.items() if name not in reasons}
    fewest = 3 if options.quick else 5
    ticks: timing.Clock = _wall(options.device) if clock == "wall" else timing.DeviceClock()
    samples = timing.interleave(runs, ticks, seconds=seconds, fewest=fewest)
    copies = {impl: len(run.runs) if isinstance(run, timing.Replayed) else 1 for impl, run in runs.items()}
    summaries = {impl: _by_mode(case, times, copies[impl]) for impl, times in samples.items()}
    auto = taken(case, options.device)
    found: list[Row] = []
    for entry in entries:
        impl = entry.contender.impl
        note = notes.get(impl, "")
        shared = {**_case_columns(case), **setting.environment, **_entry_columns(entry), "note": note}
        shared["clock"] = "device" if note else clock
        shared |= {"auto": impl == auto, "command": _command(case, options, impl, clock)}
        shared |= _machine_columns(entry.contender, case, setting.machine)
        if entry.work is None or impl in reasons:
            found.append(_row({**shared, "mode": "full", "reason": reasons.get(impl) or entry.reason}))
            continue
        for mode, summary in summaries[impl].items():
            times = {"p50_ms": summary.p50, "p20_ms": summary.p20, "p80_ms": summary.p80, "min_ms": summary.min}
            ratios = {
                column: summaries[name][mode].p50 / summary.p50
                for name, column in RATIOS.items()
                if name in summaries and mode in summaries[name]
            }
            more = {"mode": mode, "samples": summary.samples, **_achieved(case, impl, mode, summary.p50, shared)}
            found.append(_row({**shared, **times, **ratios, **more}))
    return found


def _chosen(case: Case, options: Options) -> Iterable[Contender]:
    """Those asked for, and eager always: it is the yardstick of the gate and of the ratios."""
    for contender in contenders(case):
        if contender.impl in options.skip:
            continue
        if not options.impls or contender.impl in (*options.impls, *RATIOS):
            yield contender


def _enter(contender: Contender, case: Case, gate: Gate, options: Options) -> Entry:
    """Set up and judge one contender; whatever stops it becomes the reason in its row."""
    if _slow(contender, options):
        return Entry(contender, "left out of --quick, compiling takes longer: --impl NAME")
    need = _held(contender, case)
    if need > 0.7 * (free := memory.available(options.device)):
        return Entry(contender, f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    try:
        verdict, work = gate.judge(contender)
    except Unavailable as error:
        return Entry(contender, str(error))
    except Exception as error:  # a rival may fail in any way, and so may a kernel: it is told, not hidden
        text = (str(error).strip().splitlines() or [""])[0]
        return Entry(contender, f"failed: {type(error).__name__}: {text}"[:300], broken=contender.kind == "ours")
    if verdict.reason:
        return Entry(contender, verdict.reason, verdict, broken=contender.kind == "ours")
    return Entry(contender, "", verdict, work)


def _slow(contender: Contender, options: Options) -> bool:
    """Whether it is left out for the time that its compilation takes."""
    return contender.compiled and options.quick and contender.impl not in options.impls


def _held(contender: Contender, case: Case) -> float:
    """Bytes of the matrices that it has at once."""
    return contender.matrices * case.pairs * DTYPES[contender.dtype or case.dtype].itemsize


def _graphed(entry: Entry, case: Case, gate: Gate) -> tuple[timing.Timed, str]:
    """The entry as CUDA graphs; where that is not possible as it is, and why."""
    assert entry.work is not None
    contender = entry.contender
    if contender.compiled and contender.impl == "compile_graph":
        return entry.work, "launches graphs of its own"
    inputs = gate.inputs_of(contender, 0)
    each = _held(contender, case) + 4 * sum(x.nbytes for x in inputs.leaves)
    copies = int(max(1, min(COPIES, 0.1 * memory.available("cuda") / len(contenders(case)) / each)))
    try:
        return replayed(entry.work, contender, case, inputs, copies), ""
    except Exception as error:  # whoever waits for the device, or allocates outside torch, cannot be captured
        torch.cuda.synchronize()
        return entry.work, f"no graph: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def _refused(run: timing.Timed) -> str:
    """Why ``run`` has no memory now; empty if it has."""
    try:
        run.reset()
        for stage in run.stages:
            stage()
    except torch.OutOfMemoryError as error:
        return f"no memory beside the graphs of the others: {str(error).splitlines()[0]}"[:300]
    finally:
        run.reset()
    return ""


def _wall(device: str) -> timing.WallClock:
    return timing.WallClock(synchronize=torch.cuda.synchronize) if device == "cuda" else timing.WallClock()


def _by_mode(case: Case, samples: list[list[float]], copies: int) -> dict[str, timing.Summary]:
    """Stages as modes: the first is forward, the second backward, their sum in one sample is full."""
    samples = [[spent / copies for spent in stages] for stages in samples]
    modes = {"full": [sum(stages) for stages in samples]}
    if len(case.modes) > 1:
        modes |= {"forward": [s[0] for s in samples], "backward": [s[1] for s in samples]}
    return {mode: timing.summarize(modes[mode]) for mode in case.modes}


def _case_columns(case: Case) -> Row:
    columns: Row = {"op": case.op, "case": case.name, "dtype": case.dtype}
    if isinstance(case, Perturb):
        return columns | {"rows": case.shape[0], "dim": prod(case.shape[1:])}
    sizes = {"rows": case.rows, "columns": case.columns or case.rows, "dim": case.dim}
    return columns | sizes | {"temperature": case.temperature}


def _entry_columns(entry: Entry) -> Row:
    columns: Row = {"impl": entry.contender.impl, "kind": entry.contender.kind, "reason": entry.reason}
    if entry.verdict is not None:
        columns |= {"value_error": entry.verdict.error("value"), "grad_error": entry.verdict.error("grad")}
    return columns | {"peak_mb": entry.peak}


def _machine_columns(contender: Contender, case: Case, machine: Rates) -> Row:
    rate = machine.product(contender.dtype or case.dtype, contender.tf32)
    return {"copy_rate": machine.copy, "product_rate": rate, "exp_rate": machine.exp}


def _achieved(case: Case, impl: str, mode: str, milliseconds: float, machine: Row) -> Row:
    """What was to be done, what was done, and the parts of the machine's rates that this is."""
    seconds = 1e-3 * milliseconds
    if impl == "empty":
        return {}
    done, moved = executed(case, impl, mode), case.bytes(mode)
    columns: Row = {"flops": case.flops(mode), "bytes": moved, "executed": done}
    if done and machine["product_rate"]:
        columns["of_products"] = done / seconds / machine["product_rate"]
    return columns | {"of_copy": moved / seconds / machine["copy_rate"]}


def _command(case: Case, options: Options, impl: str, clock: str) -> str:
    """What measures this row again, with its neighbours reduced to those that the ratios need."""
    flags = [f"--case {case.op}/{case.name}", f"--impl {impl}", f"--threads {options.threads}"]
    flags += ["--quick"] * options.quick + ["--full"] * options.full
    flags += [f"--device {options.device}", f"--clock {clock}"]
    return f"python -m bench {case.part} {' '.join(flags)}"


def _row(values: dict[str, Any]) -> Row:
    assert not values.keys() - set(rows.COLUMNS), values.keys() - set(rows.COLUMNS)
    return {column: values.get(column) for column in rows.COLUMNS}
