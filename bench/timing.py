"""Interleaved timing: all implementations of a case take turns in one process, so that a busy minute hits them all."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy
import torch

Stage = Callable[[], object]


class Timed(Protocol):
    """What is timed: see ``work.Work``."""

    @property
    def stages(self) -> list[Stage]: ...

    @property
    def reset(self) -> Stage: ...


class Clock(Protocol):
    """Times the stages of one sample."""

    name: str

    def __call__(self, stages: list[Stage]) -> list[float]:
        """Run ``stages`` and return the milliseconds each took."""


class WallClock:
    """What a caller waits: the host's clock, with the device idle before and after every stage."""

    name = "wall"

    def __init__(self, now: Callable[[], float] = time.perf_counter, synchronize: Stage = lambda: None) -> None:
        self.now, self.synchronize = now, synchronize

    def __call__(self, stages: list[Stage]) -> list[float]:
        self.synchronize()
        marks = [self.now()]
        for stage in stages:
            stage()
            self.synchronize()
            marks.append(self.now())
        return [1e3 * (end - start) for start, end in zip(marks, marks[1:], strict=False)]


class DeviceClock:
    """Events of a CUDA stream, with the L2 cache flushed before every sample (not between its stages).

    A form that launches more slowly than the device computes shows its gaps, unless it is ``Replayed``.
    """

    name = "device"

    def __init__(self) -> None:
        size = 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.flush = torch.empty(size, dtype=torch.int8, device="cuda")

    def __call__(self, stages: list[Stage]) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
        torch.cuda.synchronize()
        self.flush.zero_()  # also keeps the device busy while the host queues the first launches
        events[0].record()
        for stage, event in zip(stages, events[1:], strict=True):
            stage()
            event.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in zip(events, events[1:], strict=False)]


class Replayed:
    """Several copies of a run as one CUDA graph a stage: no launch waits for the host, and no input is in the cache.

    A sample is the time of all copies.

    Args:
        runs: the same work on copies of its inputs, warm.
        capture: records the calls of one stage; replays them when called.
    """

    def __init__(self, runs: Sequence[Timed], capture: Callable[[list[Stage]], Stage] | None = None) -> None:
        self.runs = runs
        capture = capture or partial(_capture, torch.cuda.graph_pool_handle())
        self.stages = [capture(list(stages)) for stages in zip(*(run.stages for run in runs), strict=True)]

    def reset(self) -> None:
        for run in self.runs:
            run.reset()


def _capture(pool: Any, stages: list[Stage]) -> Stage:
    graph = torch.cuda.CUDAGraph()
    # Stages share a pool: the backward of a graph reads what its forward saved.
    with torch.cuda.graph(graph, pool=pool):
        for stage in stages:
            stage()
    return graph.replay


@dataclass(frozen=True)
class Summary:
    """Milliseconds of one mode over all samples."""

    p20: float
    p50: float
    p80: float
    min: float
    samples: int


def summarize(values: list[float]) -> Summary:
    """Quantiles of ``values``, interpolated."""
    p20, p50, p80 = (float(q) for q in numpy.percentile(values, (20, 50, 80)))
    return Summary(p20, p50, p80, min(values), len(values))


def plan(costs: Mapping[str, float], seconds: float, fewest: int, most: int) -> dict[str, int]:
    """Samples of each: an equal share of ``seconds``, so that a slow rival does not keep the others from theirs."""
    share = 1e3 * seconds / max(1, len(costs))
    return {name: max(fewest, min(most, int(share / max(cost, 1e-6)))) for name, cost in costs.items()}


def schedule(samples: Mapping[str, int], seed: int = 0) -> list[str]:
    """Turns spread evenly over the whole time, in an order drawn anew each round: no one has a fixed predecessor."""
    rounds = max(samples.values(), default=0)
    shuffle = random.Random(seed).shuffle
    turns: list[str] = []
    for number in range(rounds):
        names = [name for name, n in samples.items() if (number + 1) * n // rounds > number * n // rounds]
        shuffle(names)
        turns += names
    return turns


def interleave(
    runs: Mapping[str, Timed],
    clock: Clock,
    *,
    seconds: float,
    fewest: int = 5,
    most: int = 200,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[list[float]]]:
    """Time every run in turns.

    Args:
        runs: what to time, by name.
        clock: times one sample.
        seconds: to be spent on all of them; warm-up comes on top, and so may the fewest samples.
        fewest: samples that even the slowest gets.
        most: samples that the fastest gets.
        now: tells when the time is up.

    Returns:
        For each run its samples, a list of milliseconds by stage.
    """
    costs = {name: _warm_up(run, clock) for name, run in runs.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    collecting = gc.isenabled()
    gc.disable()
    end = now() + seconds
    try:
        for name in schedule(plan(costs, seconds, fewest, most)):
            # Where neighbours make samples longer than the warm-up promised, the rest of the plan is dropped.
            if now() > end and len(times[name]) >= fewest:
                continue
            run = runs[name]
            run.reset()
            times[name].append(clock(run.stages))
            run.reset()  # its output must not stay in memory during the next one's turn
    finally:
        if collecting:
            gc.enable()
    return times


def _warm_up(run: Timed, clock: Clock) -> float:
    """Milliseconds of a warm sample: a compilation or a library's first call is not in it."""
    costs: list[float] = []
    while len(costs) < 3 and sum(costs[1:]) < 100:
        run.reset()
        costs.append(sum(clock(run.stages)))
    run.reset()
    return min(costs)
