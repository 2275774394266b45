"""One case from beginning to end: who can, who is right, how long, how much memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import memory, rows, table, timing
from .baselines import Unavailable
from .cases import DTYPES, Case, Perturb
from .contenders import Contender, contenders, taken
from .gate import Gate, Verdict
from .grids import PARTS, grid
from .rows import Row
from .work import Work

RATIOS = {
    "eager": "ratio_to_eager",
    "eager_fp32": "ratio_to_eager_fp32",
    "products": "ratio_to_line",
    "traffic": "ratio_to_line",
}
QUICK_MINUTES = 0.7


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    parts: tuple[str, ...] = PARTS
    quick: bool = False
    device: str = "cpu"
    clock: str = "wall"
    threads: int = 1
    minutes: float | None = None
    impls: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    cases: str = ""
    json: Path | None = None
    csv: Path | None = None
    memory: bool = True


@dataclass
class Entry:
    """What became of one contender."""

    contender: Contender
    reason: str = ""
    verdict: Verdict | None = None
    work: Work | None = None
    broken: bool = False


def run(options: Options, say: Callable[[str], None] = print) -> tuple[list[Row], bool]:
    """All cases asked for.

    Returns:
        The rows, and whether each of our implementations that claims a case computed it correctly.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        return _run(options, say)
    finally:
        torch.set_num_threads(before)


def _run(options: Options, say: Callable[[str], None]) -> tuple[list[Row], bool]:
    cases = [case for case in grid(options.quick, options.device == "cuda") if case.part in options.parts]
    cases = [case for case in cases if options.cases in f"{case.op}/{case.name}"]
    if not cases:
        raise ValueError(f"no case of {', '.join(options.parts)} has {options.cases!r} in its op/case")
    environment = rows.environment(options.device, options.threads)
    say("  ".join(f"{name} {environment[name]}" for name in ("device", "threads", "isa", "torch", "commit", "load")))
    minutes = options.minutes or (QUICK_MINUTES if options.quick else float("inf"))
    end = time.monotonic() + 60 * minutes
    done: list[Row] = []
    sound = True
    for number, case in enumerate(cases):
        left = end - time.monotonic()
        if left <= 0:
            say("\nout of time, not run: " + ", ".join(f"{c.op}/{c.name}" for c in cases[number:]))
            break
        seconds = min(1.0 if options.quick else 20.0, 0.5 * left / (len(cases) - number))
        found, good = _measure(case, options, environment, seconds)
        sound &= good
        done += found
        say(table.results(found))
        # After every case: a run that is killed keeps what it has.
        if options.csv:
            rows.append_csv(options.csv, found)
        if options.json:
            rows.write_json(options.json, done)
    return done, sound


def _measure(case: Case, options: Options, environment: Row, seconds: float) -> tuple[list[Row], bool]:
    gate = Gate(case, options.device, seeds=1 if options.quick else 5)
    entries = [_enter(contender, case, gate, options) for contender in _chosen(case, options)]
    running = {entry.contender.impl: entry.work for entry in entries if entry.work is not None}
    clock: timing.Clock = timing.DeviceClock() if options.clock == "device" else _wall(options.device)
    fewest = 3 if options.quick else 5
    samples = timing.interleave(running, clock, seconds=seconds, fewest=fewest)
    summaries = {impl: _by_mode(case, times) for impl, times in samples.items()}
    auto = taken(case, options.device)
    found: list[Row] = []
    for entry in entries:
        shared = {**_case_columns(case), **environment, **_entry_columns(entry), "clock": options.clock}
        shared["auto"] = entry.contender.impl == auto
        shared["command"] = _command(case, options, entry.contender.impl)
        if entry.work is None:
            found.append(_row({**shared, "mode": "full"}))
            continue
        entry.work.reset()
        peak = None
        if options.memory and entry.contender.kind != "line":
            peak = memory.peak_extra(case, entry.contender.impl, options.device, options.threads)
        for mode, summary in summaries[entry.contender.impl].items():
            times = {"p50_ms": summary.p50, "p20_ms": summary.p20, "p80_ms": summary.p80, "min_ms": summary.min}
            ratios = {
                column: summaries[name][mode].p50 / summary.p50
                for name, column in RATIOS.items()
                if name in summaries and mode in summaries[name]
            }
            work = {"flops": case.flops(mode), "bytes": case.bytes(mode)}
            more = {"mode": mode, "samples": summary.samples, "peak_mb": peak}
            found.append(_row({**shared, **times, **ratios, **work, **more}))
    return found, not any(entry.broken for entry in entries)


def _chosen(case: Case, options: Options) -> Iterable[Contender]:
    """Those asked for, and eager always: it is the yardstick of the gate and of the ratios."""
    for contender in contenders(case):
        if contender.impl in options.skip:
            continue
        if not options.impls or contender.impl in (*options.impls, *RATIOS):
            yield contender


def _enter(contender: Contender, case: Case, gate: Gate, options: Options) -> Entry:
    """Set up and judge one contender; whatever stops it becomes the reason in its row."""
    if contender.compiled and options.quick and contender.impl not in options.impls:
        return Entry(contender, f"left out of --quick, compiling takes longer: --impl {contender.impl}")
    need = contender.matrices * case.pairs * DTYPES[contender.dtype or case.dtype].itemsize
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


def _wall(device: str) -> timing.WallClock:
    return timing.WallClock(synchronize=torch.cuda.synchronize) if device == "cuda" else timing.WallClock()


def _by_mode(case: Case, samples: list[list[float]]) -> dict[str, timing.Summary]:
    """Stages as modes: the first is forward, the second backward, their sum in one sample is full."""
    modes = {"full": [sum(stages) for stages in samples]}
    if len(case.modes) > 1:
        modes |= {"forward": [s[0] for s in samples], "backward": [s[1] for s in samples]}
    return {mode: timing.summarize(modes[mode]) for mode in case.modes}


def _case_columns(case: Case) -> Row:
    columns: Row = {"op": case.op, "case": case.name, "dtype": case.dtype}
    if isinstance(case, Perturb):
        return columns | {"rows": case.shape[0], "dim": torch.Size(case.shape[1:]).numel()}
    sizes = {"rows": case.rows, "columns": case.columns or case.rows, "dim": case.dim}
    return columns | sizes | {"temperature": case.temperature}


def _entry_columns(entry: Entry) -> Row:
    columns: Row = {"impl": entry.contender.impl, "kind": entry.contender.kind, "reason": entry.reason}
    if entry.verdict is not None:
        columns |= {"value_error": entry.verdict.error("value"), "grad_error": entry.verdict.error("grad")}
    return columns


def _command(case: Case, options: Options, impl: str) -> str:
    """What measures this row again, with its neighbours reduced to those that the ratios need."""
    flags = [f"--case {case.op}/{case.name}", f"--impl {impl}", f"--threads {options.threads}"]
    flags += ["--quick"] * options.quick + [f"--device {options.device}", f"--clock {options.clock}"]
    return f"python -m bench {case.part} {' '.join(flags)}"


def _row(values: dict[str, Any]) -> Row:
    assert not values.keys() - set(rows.COLUMNS), values.keys() - set(rows.COLUMNS)
    return {column: values.get(column) for column in rows.COLUMNS}
