"""The goals: asked, measured, met; read from the results, or with ``--measure`` measured first."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import table
from ..grids import PARTS
from ..run import Options, run
from .latest import Latest, load, number

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Goal:
    """``found`` is the number in a machine's rows, None where they do not have it; ``amx``: needs that hardware."""

    what: str
    case: str
    asked: float
    found: Callable[[Latest], float | None]
    least: bool = True
    unit: str = "x"
    cuda: bool = True
    amx: bool = False

    def met(self, value: float) -> bool:
        return value >= self.asked if self.least else value <= self.asked


def over(case: str, ours: str, other: str, clock: str, other_case: str = "") -> Callable[[Latest], float | None]:
    """How many times faster ``ours`` is than ``other``."""

    def found(machine: Latest) -> float | None:
        a, b = machine.time(case, ours, clock=clock), machine.time(other_case or case, other, clock=clock)
        return b / a if a and b else None

    return found


def nt_xent(rows: int, dtype: str, dim: int = 128) -> str:
    return f"nt_xent/n{rows}-d{dim}-t0.5-{dtype}"


def column(case: str, impl: str, name: str, clock: str) -> Callable[[Latest], float | None]:
    return lambda machine: number((machine.row(case, impl, clock=clock) or {}).get(name))


def _microseconds(case: str) -> Callable[[Latest], float | None]:
    return lambda machine: 1e3 * value if (value := machine.time(case, "triton", clock="graph")) else None


def _above_empty(case: str) -> Callable[[Latest], float | None]:
    def found(machine: Latest) -> float | None:
        ours, empty = machine.time(case, "triton"), machine.time(case, "empty")
        return 1e3 * (ours - empty) if ours and empty else None

    return found


def _growth(machine: Latest) -> float | None:
    """Memory a row at 16,384 rows over that at 4,096: 1 is O(N d)."""
    small, large = (column(nt_xent(n, "fp32"), "native", "peak_mb", "wall")(machine) for n in (4096, 16384))
    return large / small / 4 if small and large else None


def cpu_goals() -> list[Goal]:
    goals = []
    for rows, asked in ((1024, 2.5), (4096, 6.0), (8192, 12.0), (16384, 12.0)):
        case = nt_xent(rows, "fp32")
        goals.append(Goal("eager fp32", case, asked, over(case, "native", "eager", "wall"), cuda=False))
    for rows in (4096, 8192, 16384):
        case = nt_xent(rows, "fp32")
        goals.append(Goal("three products", case, 1.7, over(case, "native", "products", "wall"), cuda=False))
    for rows, asked in ((1024, 6.0), (4096, 20.0), (8192, 40.0), (16384, 40.0)):
        case = nt_xent(rows, "bf16")
        goals.append(Goal("eager fp32", case, asked, over(case, "native", "eager_fp32", "wall"), cuda=False, amx=True))
    for rows in (4096, 8192, 16384):
        case = nt_xent(rows, "bf16")
        goals.append(Goal("eager bf16", case, 15.0, over(case, "native", "eager", "wall"), cuda=False, amx=True))
    goals.append(Goal("growth of memory a row", nt_xent(16384, "fp32"), 1.15, _growth, least=False, cuda=False))
    return goals


def cuda_goals() -> list[Goal]:
    small = nt_xent(1024, "bf16")
    goals = [
        Goal("device time", small, 15.0, _microseconds(small), least=False, unit="us"),
        Goal("call above an empty Function", small, 40.0, _above_empty(small), least=False, unit="us"),
    ]
    for rows, rivals in (
        (1024, {"eager": 8.0, "compile": 3.0}),
        (16384, {"eager": 6.0, "compile": 3.0}),
        (65536, {"products": 1.0, "eager": 10.0, "inf_cl": 4.0, "cut_cross_entropy": 2.0}),
    ):
        case = nt_xent(rows, "bf16")
        goals += [Goal(name, case, asked, over(case, "triton", name, "graph")) for name, asked in rivals.items()]
    million, wide = nt_xent(1048576, "bf16"), nt_xent(16384, "bf16", 512)
    peak = column(million, "triton", "peak_mb", "graph")
    goals.append(Goal("memory", million, 10_000.0, peak, least=False, unit="MB"))
    goals.append(Goal("of the product rate", wide, 0.55, column(wide, "triton", "of_products", "graph"), unit=""))
    for kind in ("", "-c100-threshold"):
        case = f"nt_xent/n4096-d128-t0.1{kind}-bf16"
        if kind:
            plain = over("nt_xent/n4096-d128-t0.1-bf16", "triton", "triton", "graph", case)
            goals.append(Goal("no mask (time)", case, 1.15, plain, least=False))
    big = "pgd_step_/4096x3x64x64-{}-fp32"
    for norm, asked in (("linf", 0.85), ("l2", 0.7)):
        case = big.format(norm)
        goals.append(Goal("of the copy rate", case, asked, column(case, "native", "of_copy", "graph"), unit=""))
    for norm, asked in (("linf", 4.0), ("l1", 10.0)):
        case = big.format(norm)
        goals.append(Goal("eager", case, asked, over(case, "native", "eager", "graph")))
    return goals


def lines(machine: Latest | None, goals: list[Goal]) -> list[list[str]]:
    """case, against what, asked, measured, met."""
    cells = []
    for goal in goals:
        value = goal.found(machine) if machine else None
        row = machine.row(goal.case, "native") if machine else None
        if goal.amx and row is not None and "amx" not in str(row["isa"]):
            met = "needs AMX, not here"
        else:
            met = "not measured" if value is None else "yes" if goal.met(value) else "NO"
        asked = f"{'>=' if goal.least else '<='} {goal.asked:g} {goal.unit}".strip()
        cells.append([goal.case, goal.what, asked, "" if value is None else f"{value:.3g} {goal.unit}".strip(), met])
    return cells


HEAD = ["case", "against", "asked", "measured", "met"]


def main(arguments: list[str]) -> int:
    """0 = read or measured; goals that are not met do not change it."""
    parser = argparse.ArgumentParser("python -m bench goals", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the cases first and append them to the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    goals = cuda_goals() if options.device == "cuda" else cpu_goals()
    if options.measure:
        clocks = ("wall", "graph") if options.device == "cuda" else ("wall",)
        for case in dict.fromkeys(goal.case for goal in goals):
            run(
                Options(
                    parts=PARTS,
                    cases=case,
                    device=options.device,
                    clocks=clocks,
                    threads=options.threads,
                    csv=options.results,
                ),
                say=lambda line: print(line, flush=True),
            )
    machines = [m for m in load(options.results) if any(key[3] == "graph" for key in m.found) == goals[0].cuda]
    for machine in [m for m in machines if goals[0].cuda or m.threads == options.threads] or [None]:
        where = "no rows yet: --measure" if machine is None else f"{machine.name}, {machine.threads} threads"
        print(f"\n{where}")
        print(table.render([HEAD, *lines(machine, goals)], left=2))
    return 0
