"""The goals: asked, measured, met; read from the results, or with ``--measure`` measured first."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import table
from ..cases import RULES
from ..grids import masked
from ..run import Options, run
from .latest import Latest, load, number

RESULTS = Path(__file__).parents[1] / "results"
COPIED = {"linf": 0.85, "l2": 0.7}
STEPPED = {"linf": 4.0, "l1": 10.0}
"""Of steps of attacks: at least so much of the copy rate, so many times faster than eager (l1: by sorting)."""


@dataclass(frozen=True)
class Goal:
    """``found`` is the number in a machine's rows, None where they do not have it; ``amx``: needs that hardware.

    ``impls`` must be measured for it, on ``case`` and on ``than``.
    """

    what: str
    case: str
    asked: float
    found: Callable[[Latest], float | None]
    impls: tuple[str, ...]
    than: str = ""
    least: bool = True
    unit: str = "x"
    amx: bool = False

    def met(self, value: float) -> bool:
        return value >= self.asked if self.least else value <= self.asked


def nt_xent(rows: int, dtype: str, dim: int = 128) -> str:
    return f"nt_xent/n{rows}-d{dim}-t0.5-{dtype}"


def sup_con(rows: int, dtype: str) -> str:
    return f"sup_con/n{rows}-d128-t0.1-c100-{dtype}"


def faster(what: str, case: str, asked: float, ours: str, other: str, clock: str, *, amx: bool = False) -> Goal:
    """``ours`` at least ``asked`` times faster than ``other``; who has no CUDA graph is timed by events."""

    def found(machine: Latest) -> float | None:
        a, b = (machine.time(case, impl, clock=clock) for impl in (ours, other))
        if b is None and clock == "graph":
            b = machine.time(case, other, clock="device")
        return b / a if a and b else None

    return Goal(what, case, asked, found, (ours, other), amx=amx)


def _cell(what: str, case: str, asked: float, impl: str, name: str, *, least: bool = True, unit: str = "") -> Goal:
    """A column of a row by CUDA graphs."""

    def found(machine: Latest) -> float | None:
        return number((machine.row(case, impl, clock="graph") or {}).get(name))

    return Goal(what, case, asked, found, (impl,), least=least, unit=unit)


def _device_time(case: str, asked: float) -> Goal:
    def found(machine: Latest) -> float | None:
        return 1e3 * value if (value := machine.time(case, "triton", clock="graph")) else None

    return Goal("device time", case, asked, found, ("triton",), least=False, unit="us")


def _above_empty(case: str, asked: float) -> Goal:
    def found(machine: Latest) -> float | None:
        ours, empty = machine.time(case, "triton"), machine.time(case, "empty")
        return 1e3 * (ours - empty) if ours and empty else None

    return Goal("call above an empty Function", case, asked, found, ("triton", "empty"), least=False, unit="us")


def _masked(rows: int, rule: str, asked: float) -> Goal:
    plain, case = (f"nt_xent/{masked(rows, name).name}" for name in ("", rule))

    def found(machine: Latest) -> float | None:
        without, with_rule = (machine.time(of, "triton", clock="graph") for of in (plain, case))
        return with_rule / without if without and with_rule else None

    return Goal("no mask (time)", case, asked, found, ("triton",), than=plain, least=False)


def _growth(machine: Latest) -> float | None:
    """Memory a row at 16,384 rows over that at 4,096: 1 is O(N d)."""
    small, large = (
        number((machine.row(nt_xent(rows, "fp32"), "native") or {}).get("peak_mb")) for rows in (4096, 16384)
    )
    return large / small / 4 if small and large else None


def cpu_goals() -> list[Goal]:
    goals = []
    for rows, asked in ((1024, 2.5), (4096, 6.0), (8192, 12.0), (16384, 12.0)):
        goals.append(faster("eager fp32", nt_xent(rows, "fp32"), asked, "native", "eager", "wall"))
    for rows in (4096, 8192, 16384):
        goals.append(faster("three products", nt_xent(rows, "fp32"), 1.7, "native", "products", "wall"))
    for rows, asked in ((1024, 6.0), (4096, 20.0), (8192, 40.0), (16384, 40.0)):
        goals.append(faster("eager fp32", nt_xent(rows, "bf16"), asked, "native", "eager_fp32", "wall", amx=True))
    for rows in (4096, 8192, 16384):
        goals.append(faster("eager bf16", nt_xent(rows, "bf16"), 15.0, "native", "eager", "wall", amx=True))
    few, many = (nt_xent(rows, "fp32") for rows in (4096, 16384))
    return [*goals, Goal("growth of memory a row", many, 1.15, _growth, ("native",), than=few, least=False)]


def cuda_goals() -> list[Goal]:
    goals = []
    for case in (nt_xent, sup_con):
        small = case(1024, "bf16")
        goals += [_device_time(small, 15.0), _above_empty(small, 40.0)]
        for rows, rivals in (
            (1024, {"eager": 8.0, "compile": 3.0}),
            (16384, {"eager": 6.0, "compile": 3.0}),
            (65536, {"products": 1.0, "eager": 10.0, "inf_cl": 4.0, "cut_cross_entropy": 2.0}),
        ):
            for name, asked in rivals.items():
                goals.append(faster(name, case(rows, "bf16"), asked, "triton", name, "graph"))
        million = case(1048576, "bf16")
        goals.append(_cell("memory", million, 10_000.0, "triton", "peak_mb", least=False, unit="MB"))
    goals.append(_cell("of the product rate", nt_xent(16384, "bf16", 512), 0.55, "triton", "of_products"))
    for rows in (4096, 16384):
        goals += [_masked(rows, rule, 1.6 if rule == "topk" else 1.15) for rule in RULES]
    big = "pgd_step_/4096x3x64x64-{}-fp32"
    goals += [_cell("of the copy rate", big.format(n), asked, "native", "of_copy") for n, asked in COPIED.items()]
    goals += [faster("eager", big.format(n), asked, "native", "eager", "graph") for n, asked in STEPPED.items()]
    return goals


def lines(machine: Latest | None, goals: list[Goal], foretold: Latest | None = None) -> list[list[str]]:
    """case, against what, asked, measured, met; with ``foretold`` also what was predicted, where something was."""
    cells = []
    for goal in goals:
        value = goal.found(machine) if machine else None
        row = machine.row(goal.case, "native") if machine else None
        if goal.amx and row is not None and "amx" not in str(row["isa"]):
            met = "needs AMX, not here"
        else:
            met = "not measured" if value is None else "yes" if goal.met(value) else "NO"
        asked = f"{'>=' if goal.least else '<='} {goal.asked:g} {goal.unit}".strip()
        predicted = [_number(goal.found(foretold), goal.unit)] if foretold else []
        cells.append([goal.case, goal.what, asked, *predicted, _number(value, goal.unit), met])
    return cells


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}".strip()


HEAD = ["case", "against", "asked", "measured", "met"]


def wanted(goals: list[Goal]) -> dict[str, tuple[str, ...]]:
    """What is to be measured: who on which case; what has to be compiled, which takes longest, last."""
    cases: dict[str, tuple[str, ...]] = {}
    for goal in goals:
        for case in filter(None, (goal.than, goal.case)):
            cases[case] = tuple(dict.fromkeys([*cases.get(case, ()), *goal.impls]))
    return dict(sorted(cases.items(), key=lambda item: "compile" in item[1]))


def measured(options: argparse.Namespace, goals: list[Goal], say: Callable[[str], None]) -> bool:
    """Measure what the goals want, each case in an equal share of the minutes left; whether ours were right."""
    end, sound = time.monotonic() + 60 * options.minutes, True
    cases = {case: impls for case, impls in wanted(goals).items() if size(case) <= options.rows}
    for done, (case, impls) in enumerate(cases.items()):
        left = (end - time.monotonic()) / 60
        if left <= 0:
            say(f"out of time, not measured: {', '.join(list(cases)[done:])}")
            break
        minutes = left / (len(cases) - done)
        clocks = ("wall", "graph") if options.device == "cuda" else ("wall",)
        asked = Options(
            cases=case,
            impls=impls,
            minutes=minutes,
            clocks=clocks,
            csv=options.csv,
            device=options.device,
            threads=options.threads,
        )
        sound &= run(asked, say=say)[1]
    return sound


def size(case: str) -> int:
    """Rows of a loss; images count as none."""
    found = re.search(r"/n(\d+)", case)
    return int(found[1]) if found else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench goals", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the cases first and append them to the results")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="begin no case after (%(default)s)")
    parser.add_argument("--rows", type=int, default=2**20, metavar="N", help="measure no loss of more (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--csv", type=Path, default=RESULTS, metavar="DIR", help="the results (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """0 = read or measured, whatever is met; 1 = one of our implementations was wrong or failed."""
    options = parse(arguments)
    cuda = options.device == "cuda"
    if options.measure and cuda and not torch.cuda.is_available():
        raise ValueError("--measure --device cuda: torch sees no CUDA device here")
    goals = cuda_goals() if cuda else cpu_goals()
    sound = not options.measure or measured(options, goals, lambda line: print(line, flush=True))
    machines = [m for m in load(options.csv) if any(key[3] == "graph" for key in m.found) == cuda]
    for machine in [m for m in machines if cuda or m.threads == options.threads] or [None]:
        where = "no rows yet: --measure" if machine is None else f"{machine.name}, {machine.threads} threads"
        print(f"\n{where}")
        print(table.render([HEAD, *lines(machine, goals)], left=2))
    return int(not sound)
