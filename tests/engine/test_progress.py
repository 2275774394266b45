import io
import math
import re

import pytest
from rich.console import Console

from clead.engine.progress import Progress, Throughput, format_loss, format_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plain(clock):
    output = io.StringIO()
    return Progress(Console(file=output, width=40), clock=clock), output


def run(progress, clock, *, steps, seconds, first=1, last=None, images=64, epochs=6):
    with progress.stage("pretrain", total_steps=steps, epochs=epochs, first_step=first) as stage:
        for step in range(first, (last or steps) + 1):
            clock.now += seconds
            epoch = -(-step * epochs // steps)
            stage.update(epoch=epoch, step=step, loss=2.0, images=images)
    return stage


def test_plain_lines_exactly():
    clock = Clock()
    progress, output = plain(clock)
    with progress.stage("pretrain", total_steps=4, epochs=2) as stage:
        clock.now += 7.0  # warm-up, which the rate leaves out
        stage.update(epoch=1, step=1, loss=5.12345, images=32)
        clock.now += 0.5
        stage.update(epoch=1, step=2, loss=4.0, images=32)
        clock.now += 2.0
        stage.update(epoch=2, step=3, loss=float("nan"), images=48)
        clock.now += 0.5
        stage.update(epoch=2, step=4, loss=None, images=32)
    progress.note("see [bold]runs/a[/bold] :smile: " + "x" * 60)
    # Decayed sums by hand, memory 10 s: 32 images in 0.5 s, then 48 in 2 s, then 32 in 0.5 s.
    keep = math.exp(-0.2)
    rate_3 = (32 * keep + 48) / (0.5 * keep + 2.0)
    left_3 = (0.5 * keep + 2.0) / (keep + 1)
    keep_4 = math.exp(-0.05)
    rate_4 = ((32 * keep + 48) * keep_4 + 32) / ((0.5 * keep + 2.0) * keep_4 + 0.5)
    assert round(left_3) == 1
    assert output.getvalue().splitlines() == [
        "pretrain: epoch 1/2, step 1/4, loss 5.123",
        f"pretrain: epoch 2/2, step 3/4, loss nan, {rate_3:.1f} images/s, 0:01 left",
        f"pretrain: epoch 2/2, step 4/4, loss none, {rate_4:.1f} images/s, took 0:10",
        "see [bold]runs/a[/bold] :smile: " + "x" * 60,
    ]


def test_constant_speed_is_measured_exactly():
    clock = Clock()
    progress, output = plain(clock)
    stage = run(progress, clock, steps=50, seconds=4.0)
    assert stage.images_per_s == pytest.approx(16.0)
    lines = output.getvalue().splitlines()
    assert lines[0] == "pretrain: epoch 1/6, step 1/50, loss 2.000"
    assert lines[1] == "pretrain: epoch 1/6, step 5/50, loss 2.000, 16.0 images/s, 3:00 left"
    assert lines[-1] == "pretrain: epoch 6/6, step 50/50, loss 2.000, 16.0 images/s, took 3:20"
    assert len(lines) == 11


@pytest.mark.parametrize("seconds", [1e-4, 0.03, 1.0, 19.0, 21.0, 4000.0])
@pytest.mark.parametrize("steps", [1, 2, 9, 1000])
def test_plain_output_is_short_and_plain(steps, seconds):
    clock = Clock()
    progress, output = plain(clock)
    run(progress, clock, steps=steps, seconds=seconds)
    text = output.getvalue()
    lines = text.splitlines()
    assert len(lines) <= 15
    assert f"step 1/{steps}" in lines[0]
    assert f"step {steps}/{steps}" in lines[-1]
    assert len(set(lines)) == len(lines)
    assert text.isprintable() or re.fullmatch(r"[ -~\n]*", text)


def test_a_slow_start_is_heard_of():
    clock = Clock()
    progress, output = plain(clock)
    run(progress, clock, steps=100_000, last=50, seconds=3.0)
    steps = [int(re.search(r"step (\d+)/", line)[1]) for line in output.getvalue().splitlines()]
    assert steps == [1, 8, 15, 22, 29, 50]  # 21 s apart, four times; then where it stopped


def test_resumed_stage():
    clock = Clock()
    progress, output = plain(clock)
    stage = run(progress, clock, steps=100, seconds=1.0, first=61)
    lines = output.getvalue().splitlines()
    assert lines[0] == "pretrain: epoch 4/6, step 61/100, loss 2.000"
    assert stage.images_per_s == pytest.approx(64.0)
    assert lines[1].endswith("step 70/100, loss 2.000, 64.0 images/s, 0:30 left")


def test_rate_needs_two_updates():
    clock = Clock()
    progress, _ = plain(clock)
    with progress.stage("s", 10, 1) as stage:
        assert stage.images_per_s == 0.0
        clock.now += 1
        stage.update(epoch=1, step=1, loss=1.0, images=8)
        assert stage.images_per_s == 0.0
        stage.update(epoch=1, step=2, loss=1.0, images=8)  # in no time at all
        assert stage.images_per_s == 0.0
        clock.now += 2
        stage.update(epoch=1, step=6, loss=1.0, images=8)
        assert stage.images_per_s == pytest.approx((8 * math.exp(-0.2) + 8) / 2)


def test_time_left_counts_skipped_steps():
    clock = Clock()
    progress, output = plain(clock)
    with progress.stage("s", 100, 1) as stage:
        for step in (1, 11, 21):  # reported every ten steps, 5 s each
            clock.now += 5
            stage.update(epoch=1, step=step, loss=1.0, images=80)
    assert output.getvalue().splitlines()[2] == "s: epoch 1/1, step 21/100, loss 1.000, 16.0 images/s, 0:40 left"


def test_rate_forgets_the_past():
    rate = Throughput()
    for _ in range(100):
        rate.add(1.0, 100, 1)
    for _ in range(60):
        rate.add(1.0, 10, 1)
    assert rate.images_per_s == pytest.approx(10 + 90 * math.exp(-6), rel=1e-3)


def test_interruption_is_told_and_passed_on():
    clock = Clock()
    progress, output = plain(clock)
    with pytest.raises(KeyboardInterrupt), progress.stage("pretrain", 10, 1) as stage:
        stage.update(epoch=1, step=1, loss=1.0, images=1)
        raise KeyboardInterrupt
    assert output.getvalue().splitlines()[-1] == "pretrain: stopped after step 1/10"


def test_terminal_gets_a_live_line_and_its_cursor_back():
    clock = Clock()
    output = Terminal()
    progress = Progress(Console(file=output, force_terminal=True, width=80, color_system=None), clock=clock)
    assert progress.live
    with pytest.raises(RuntimeError), progress.stage("pretrain", 10, 2) as stage:
        for step in range(1, 8):
            clock.now += 0.5
            stage.update(epoch=1, step=step, loss=1.25, images=50)
        progress.note("half way [there]")
        with progress.stage("inner", 2, 1) as inner:
            inner.update(epoch=1, step=1, loss=None, images=1)
        raise RuntimeError
    text = output.getvalue()
    assert "epoch 1/2  loss 1.250  100 images/s  0:02 left" in text
    assert "half way [there]\n" in text.replace("\r", "")
    assert "inner" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    # A second stage opens a display of its own.
    with progress.stage("linear_eval", 1, 1) as stage:
        stage.update(epoch=1, step=1, loss=0.5, images=50)
    assert "linear_eval" in output.getvalue()
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")


def test_live_line_fits_80_columns():
    clock = Clock()
    output = Terminal()
    progress = Progress(Console(file=output, force_terminal=True, width=80, color_system=None), clock=clock)
    with progress.stage("adv_linear_eval", 1000, 120) as stage:
        for step in range(1, 900):
            clock.now += 1.0
            stage.update(epoch=110, step=step, loss=3.14159, images=54_321)
    assert "epoch 110/120  loss 3.142  54321 images/s  1:41 left" in output.getvalue()


def test_forced_colours_do_not_make_a_file_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = io.StringIO()
    progress = Progress(Console(file=output), clock=Clock())
    assert not progress.live
    progress.note("8/255")
    assert output.getvalue() == "8/255\n"


def test_words():
    assert [format_loss(x) for x in (0.0, 1e-7, 12.3456, float("inf"), None)] == [
        "0.000",
        "1.000e-07",
        "12.35",
        "inf",
        "none",
    ]
    assert [format_seconds(x) for x in (0.4, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
