"""A run: which cases, for how long, and where their rows go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import rates, rows, table
from .cases import Case, Perturb
from .grids import PARTS, grid
from .measure import Setting, measure
from .rows import Row

QUICK_MINUTES = 0.7


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    parts: tuple[str, ...] = PARTS
    quick: bool = False
    full: bool = False
    most: int | None = None
    device: str = "cpu"
    clocks: tuple[str, ...] = ("wall",)
    threads: int = 1
    minutes: float | None = None
    impls: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    cases: str = ""
    json: Path | None = None
    csv: Path | None = None
    memory: bool = True


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
    cases = chosen(options)
    environment = rows.environment(options.device, options.threads)
    say("  ".join(f"{name} {environment[name]}" for name in ("device", "threads", "isa", "torch", "commit", "load")))
    machine = rates.measure(options.device, options.threads)
    say(str(machine))
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
        by_clock, good = measure(case, Setting(options, environment, machine), seconds)
        sound &= good
        for some in by_clock.values():
            say(table.results(some))
        found = [row for some in by_clock.values() for row in some]
        done += found
        # After every case: a run that is killed keeps what it has.
        if options.csv:
            rows.append_csv(options.csv, found)
        if options.json:
            rows.write_json(options.json, done)
    return done, sound


def chosen(options: Options) -> list[Case]:
    """The cases that the options leave.

    Raises:
        ValueError: none.
    """
    cases = [case for case in grid(options.quick, options.device == "cuda", options.full) if case.part in options.parts]
    cases = [case for case in cases if options.cases in f"{case.op}/{case.name}"]
    most = options.most
    if most is not None:
        cases = [case for case in cases if isinstance(case, Perturb) or case.pairs <= most**2]
    if not cases:
        parts, limit = ", ".join(options.parts), "" if most is None else f" and at most {most} rows"
        raise ValueError(f"no case of {parts} has {options.cases!r} in its op/case{limit}")
    return cases
