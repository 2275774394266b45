"""A whole step from beginning to end: is it the same step, how long, how much memory, where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from clead.engine.memory import keep_freed_memory
from clead.methods import METHODS

from .. import memory, rows, table, timing
from ..rates import product
from ..rows import Row
from ..run import QUICK_MINUTES, Options
from . import convolutions, optimizers
from .cases import FORMS, Step, StepCase, prepare, synchronize

PARTS = ("augment", "attack", "loss", "optimizer")
FULL_METHODS = ("simclr", "pgd_at", "acl", "rocl", "clead", "ascl")
# A first step's loss may differ where a gradient's sign hangs on its rounding; more than that is another step.
TOLERANCE = {"fp32": 0.02, "bf16": 0.15}


def grid(quick: bool, cuda: bool) -> list[StepCase]:
    """Those of the papers on ResNet-18; or every method on the digits, these first."""
    if quick:
        return [StepCase(method, "digits", 64, steps=3) for method in dict.fromkeys((*FULL_METHODS, *METHODS))]
    return [StepCase(method, "cifar10", 512 if cuda else 32) for method in FULL_METHODS]


def run(options: Options, say: Callable[[str], None] = print) -> tuple[list[Row], bool]:
    """All cases asked for; the rows, and whether every form computed the plain form's step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        keep_freed_memory()  # as clead's commands do
    try:
        return _run(options, say)
    finally:
        torch.set_num_threads(threads)


def _run(options: Options, say: Callable[[str], None]) -> tuple[list[Row], bool]:
    cases = [c for c in grid(options.quick, options.device == "cuda") if options.cases in f"step/{c.name}"]
    updates = [name for name in optimizers.CONFIGS if options.cases in f"optimizer/{name}-resnet18"]
    one_by_one = convolutions.grid(options.quick, options.device == "cuda")
    layers = [case for case in one_by_one if options.cases in f"convolution/{case.name}"]
    if not cases and not updates and not layers:
        raise ValueError(f"no step has {options.cases!r} in its op/case")
    environment = rows.environment(options.device, options.threads)
    say("  ".join(f"{name} {environment[name]}" for name in ("device", "threads", "isa", "torch", "commit", "load")))
    end = time.monotonic() + 60 * (options.minutes or (QUICK_MINUTES if options.quick else float("inf")))
    done: list[Row] = []
    todo = [(name, partial(optimizers.measure, name), optimizers.show) for name in updates]
    todo += [(case.name, partial(convolutions.measure, case), convolutions.show) for case in layers]
    todo += [(case.name, partial(_measure, case), _table) for case in cases]
    for number, (_, measure, show) in enumerate(todo):
        if time.monotonic() > end:
            say("\nout of time, not run: " + ", ".join(name for name, *_ in todo[number:]))
            break
        found = measure(options, environment)
        say(show(found))
        done += found
        if options.csv:
            rows.append_csv(options.csv, found)
        if options.json:
            rows.write_json(options.json, done)
    return done, not any(row["reason"].startswith(("wrong", "failed")) for row in done if row["reason"])


def _measure(case: StepCase, options: Options, environment: Row) -> list[Row]:
    steps, reasons, errors = _enter(case, options)
    flops = _flops(case, options.device)
    rates = {name: product(dtype, options.device) for name, dtype in _DTYPES.items()}
    fewest = 2 if options.quick else 3
    synchronized = timing.WallClock(synchronize=lambda: synchronize(options.device))
    seconds = 0.3 if options.quick else 20.0
    samples = timing.interleave(steps, synchronized, seconds=seconds, fewest=fewest, most=20)
    summaries = {name: timing.summarize([sum(stages) for stages in times]) for name, times in samples.items()}
    found: list[Row] = []
    for name in (*steps, *reasons):
        dtype = FORMS[name].speed.precision
        shared = {
            **environment,
            **{"op": "step", "case": case.name, "impl": name, "kind": "rival" if FORMS[name].plain else "ours"},
            **{"dtype": dtype, "rows": case.batch, "clock": "wall", "reason": reasons.get(name, "")},
            "value_error": errors.get(name),
            "command": f"python -m bench steps --case step/{case.name} --impl {name} --threads {options.threads}"
            + " --quick" * options.quick,
        }
        if name in reasons:
            found.append(_row({**shared, "mode": "full"}))
            continue
        summary = summaries[name]
        times = {"p50_ms": summary.p50, "p20_ms": summary.p20, "p80_ms": summary.p80, "min_ms": summary.min}
        ratios = {"ratio_to_eager": summaries["plain"].p50 / summary.p50 if "plain" in summaries else None}
        ratios["ratio_to_line"] = 1e3 * flops / rates[dtype] / summary.p50  # the line: its products at matmul's rate
        peak = _peak(case, name, options) if options.memory else None
        more = {"mode": "full", "samples": summary.samples, "peak_mb": peak, "flops": flops}
        found.append(_row({**shared, **times, **ratios, **more}))
        for part, milliseconds in _parts(steps[name], options.device).items():
            found.append(_row({**shared, "mode": part, "p50_ms": milliseconds, "samples": 1}))
    return found


def _enter(case: StepCase, options: Options) -> tuple[dict[str, Step], dict[str, str], dict[str, float]]:
    """The forms that take part, why others do not, and how far the first loss is from the plain one's, relatively."""
    steps: dict[str, Step] = {}
    reasons: dict[str, str] = {}
    losses: dict[str, float] = {}
    for name, form in FORMS.items():
        asked = name in options.impls or not options.impls
        if name in options.skip or not (asked or name == "plain"):
            continue
        if form.speed.executor == "graph" and options.device != "cuda":
            continue
        if form.speed.executor == "compile" and name not in options.impls:
            reasons[name] = f"compiling takes minutes: --impl {name}"
            continue
        try:
            step = prepare(case, form, options.device)
            losses[name] = step.once()
        except Exception as error:  # told, not hidden
            reasons[name] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
            continue
        off = abs(losses[name] / losses["plain"] - 1) if "plain" in losses else 0.0
        if form.loading:  # its random numbers are others
            steps[name] = step
            del losses[name]
        elif not off <= TOLERANCE[form.speed.precision]:
            reasons[name] = f"wrong: the loss is off by {off:.1%}"
        else:
            steps[name] = step
    return steps, reasons, {name: abs(loss / losses["plain"] - 1) for name, loss in losses.items() if "plain" in losses}


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _flops(case: StepCase, device: str) -> int:
    """Of the convolutions and products that a step needs: those of the folded form."""
    step = prepare(case, FORMS["fold"], device)
    with _Watch(device) as watch:
        step.once()
    return watch.flops


class _Watch(TorchDispatchMode):
    """Adds up what torch counts of convolutions and products, and the seconds of our operators on pairs.

    Torch's own counter fails inside ``autograd.grad``.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.flops, self.seconds = device, 0, 0.0

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        fused = function.namespace == "clead" and not any(word in str(function) for word in _OTHERS)
        if fused:
            synchronize(self.device)
        start = time.perf_counter()
        out = function(*arguments, **(options or {}))
        if fused:
            synchronize(self.device)
            self.seconds += time.perf_counter() - start
        count = flop_registry.get(function._overloadpacket)
        self.flops += int(count(*arguments, **(options or {}), out_val=out)) if count else 0
        return out


_OTHERS = ("pgd_step", "random_start", "project", "momentum", "conv3x3")


def _parts(step: Step, device: str) -> dict[str, float]:
    """Milliseconds of one step's parts; loss: the fused operators, in the attack too."""
    step.seconds.clear()
    step.once()
    found = {part: 1e3 * step.seconds.get(part, 0.0) for part in PARTS}
    with _Watch(device) as watch:
        step.once()
    return found | {"loss": 1e3 * watch.seconds}


def _peak(case: StepCase, form: str, options: Options) -> float | None:
    if options.device == "cuda":
        step = prepare(case, FORMS[form], "cuda")
        step.once()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.once()
        return float(torch.cuda.max_memory_allocated() - before) / memory.MIB
    return memory.in_child(_child, (case, form, options.threads), timeout=300.0)


def _child(sender: Connection, case: StepCase, form: str, threads: int) -> None:
    torch.set_num_threads(threads)
    memory.return_freed_blocks()
    step = prepare(case, FORMS[form], "cpu")
    step.once()
    sender.send(memory.added_by(step.once))


def _table(found: list[Row]) -> str:
    """One case: a line for each form."""
    head = ["form", "ms", "p20 .. p80", "x plain", "x loading", "images/s", "of matmul", "peak MB"]
    lines = [[*head, *(f"{part} ms" for part in PARTS), "loss off by"]]
    full = [row for row in found if row["mode"] == "full" and not row["reason"]]
    loading = next((row["p50_ms"] for row in full if row["impl"] == "plain+loading"), None)
    for row in full:
        parts = {other["mode"]: other["p50_ms"] for other in found if other["impl"] == row["impl"]}
        span = f"{table.milliseconds(row['p20_ms'])} .. {table.milliseconds(row['p80_ms'])}"
        ratios = ["" if row["ratio_to_eager"] is None else f"{row['ratio_to_eager']:.2f}"]
        ratios.append("" if loading is None else f"{loading / row['p50_ms']:.2f}")
        line = [row["impl"], table.milliseconds(row["p50_ms"]), span, *ratios]
        line += [f"{1e3 * row['rows'] / row['p50_ms']:.1f}", f"{row['ratio_to_line']:.0%}"]
        line.append("" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}")
        line += [table.milliseconds(parts[part]) for part in PARTS]
        lines.append([*line, "" if row["value_error"] is None else f"{row['value_error']:.1e}"])
    refused = [f"  -- {row['impl']}: {row['reason']}" for row in found if row["reason"]]
    return "\n".join([f"\nstep  {found[0]['case']}", table.render(lines), *refused])


def _row(values: dict[str, Any]) -> Row:
    return {column: values.get(column) for column in rows.COLUMNS}
