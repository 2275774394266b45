"""The timer on a fake clock: what it counts, who takes turns when, and how it sums up."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.timing import Replayed, WallClock, interleave, plan, schedule, summarize

pytestmark = pytest.mark.kernels


class FakeTime:
    """Seconds that pass only when a stage says so."""

    def __init__(self):
        self.seconds, self.log = 0.0, []

    def now(self):
        return self.seconds

    def spend(self, name, seconds):
        self.log.append(name)
        self.seconds += seconds


class FakeRun:
    """Two stages of known length; ``reset`` takes time that must not be counted."""

    def __init__(self, time, name, forward, backward, reset=0.0):
        self.stages = [lambda: time.spend(name, next(self.forward)), lambda: time.spend(f"{name}'", backward)]
        self.reset = lambda: time.spend("reset", reset)
        self.forward = iter(forward)


def forever(value):
    while True:
        yield value


def test_the_wall_clock_times_each_stage_and_waits_for_the_device():
    time = FakeTime()
    waits = iter([5.0, 0.25, 0.5])
    clock = WallClock(time.now, synchronize=lambda: time.spend("wait", next(waits)))
    # The wait before the first stage is not counted, the one after a stage is part of it.
    assert clock([lambda: time.spend("a", 1.0), lambda: time.spend("b", 2.0)]) == [1250.0, 2500.0]


def test_samples_are_the_stages_alone():
    time = FakeTime()
    runs = {"a": FakeRun(time, "a", forever(0.001), 0.002, reset=7.0), "b": FakeRun(time, "b", forever(0.01), 0.03)}
    times = interleave(runs, WallClock(time.now), seconds=1000, fewest=4, most=4, now=lambda: 0.0)
    assert times["a"] == [pytest.approx([1.0, 2.0])] * 4
    assert times["b"] == [pytest.approx([10.0, 30.0])] * 4


def test_the_first_slow_call_is_not_in_the_samples():
    time = FakeTime()

    def compiling():
        yield 60.0
        yield from forever(0.001)

    run = FakeRun(time, "a", compiling(), 0.0)
    times = interleave({"a": run}, WallClock(time.now), seconds=1, fewest=3, most=50, now=lambda: 0.0)
    assert len(times["a"]) == 50
    assert max(sample[0] for sample in times["a"]) == pytest.approx(1.0)


def test_a_slow_rival_keeps_nobody_from_their_samples():
    assert plan({"slow": 2000.0, "fast": 1.0, "middle": 100.0}, seconds=3, fewest=5, most=200) == {
        "slow": 5,
        "fast": 200,
        "middle": 10,
    }


def test_turns_are_spread_evenly_and_in_no_fixed_order():
    samples = {"a": 100, "b": 100, "slow": 5}
    turns = schedule(samples)
    assert Counter(turns) == samples
    where = [turn for turn, name in enumerate(turns) if name == "slow"]
    gaps = [later - earlier for earlier, later in zip(where, where[1:], strict=False)]
    assert all(30 <= gap <= 50 for gap in gaps)
    pairs = Counter(zip(turns, turns[1:], strict=False))
    assert min(pairs["a", "b"], pairs["b", "a"], pairs["a", "a"] + pairs["b", "b"]) > 20
    assert schedule({}) == []


def test_when_samples_take_longer_than_promised_the_plan_is_cut_to_the_fewest():
    time = FakeTime()

    def slowing():
        yield from (0.001, 0.001, 0.001)  # the warm-up promises a millisecond
        yield from forever(1.0)

    runs = {name: FakeRun(time, name, slowing(), 0.0) for name in ("a", "b")}
    times = interleave(runs, WallClock(time.now), seconds=10, fewest=3, most=100, now=time.now)
    assert all(3 <= len(samples) <= 9 for samples in times.values())


def test_garbage_collection_is_off_during_samples_and_on_again():
    import gc

    seen = []

    class Run:
        stages = (lambda: seen.append(gc.isenabled()),)
        reset = staticmethod(lambda: None)

    interleave({"a": Run()}, WallClock(), seconds=0.01, fewest=2, most=2)
    assert seen[-2:] == [False, False]
    assert gc.isenabled()

    class Broken(Run):
        stages = (lambda: 1 / 0,)

    with pytest.raises(ZeroDivisionError):
        interleave({"a": Broken()}, WallClock(), seconds=0.01)
    assert gc.isenabled()


def test_graphs_replay_every_copy_once_a_stage():
    time = FakeTime()
    runs = [FakeRun(time, f"copy {number}", forever(0.003), 0.006) for number in range(3)]
    captured = []

    def capture(stages):
        captured.append(len(stages))
        return lambda: [stage() for stage in stages]

    both = Replayed(runs, capture)
    assert captured == [3, 3]  # forward and backward, each over all copies
    (sample,) = interleave({"a": both}, WallClock(time.now), seconds=9, fewest=1, most=1, now=lambda: 0.0)["a"]
    assert sample == [pytest.approx(9.0), pytest.approx(18.0)]
    assert time.log[-9:-3] == ["copy 0", "copy 1", "copy 2", "copy 0'", "copy 1'", "copy 2'"]
    assert time.log[-3:] == ["reset"] * 3


def test_quantiles_of_known_numbers():
    summary = summarize([float(x) for x in range(101)][::-1])
    assert (summary.p20, summary.p50, summary.p80, summary.min, summary.samples) == (20.0, 50.0, 80.0, 0.0, 101)
    assert summarize([3.0]).p20 == 3.0
