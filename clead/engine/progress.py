"""Live progress: a bar on a terminal, a few plain lines where the output is a file or a pipe.

Plain lines hold no escape codes and no carriage returns. A stage prints its first and last step, each tenth that ends
at least two seconds after the line before, and for early feedback up to four lines after 20 s of silence: 15 at most.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console
from rich.table import Column

MEMORY_S = 10.0  # images/s and the time left forget what happened this long ago (by 1/e)
PLAIN_GAP_S = 2.0
PLAIN_SILENCE_S = 20.0
PLAIN_EXTRA_LINES = 4
LIVE_GAP_S = 0.1


class Throughput:
    """Images and steps per second: exponential moving averages that leave out the first step.

    Ratios of decayed sums rather than averages of ratios, so slow steps count for as long as they took.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._images = 0.0
        self._steps = 0.0

    def add(self, seconds: float, images: int, steps: int) -> None:
        """Count ``steps`` steps over ``images`` images that took ``seconds`` together."""
        keep = math.exp(-seconds / MEMORY_S)
        self._time = keep * self._time + seconds
        self._images = keep * self._images + images
        self._steps = keep * self._steps + steps

    @property
    def images_per_s(self) -> float:
        """Images per second; 0.0 as long as nothing was counted."""
        return self._images / self._time if self._time > 0 else 0.0

    @property
    def steps_per_s(self) -> float:
        """Steps per second; 0.0 as long as nothing was counted."""
        return self._steps / self._time if self._time > 0 else 0.0


class Stage(ABC):
    """One stage of a run, opened by ``Progress.stage``; call ``update`` after each step."""

    def __init__(self, name: str, total_steps: int, epochs: int, first_step: int, clock: Callable[[], float]) -> None:
        self.name = name
        self.total_steps = total_steps
        self.epochs = epochs
        self.first_step = first_step
        self.step = first_step - 1
        self.epoch = 0
        self.loss: float | None = None
        self._clock = clock
        self._started = self._now = clock()
        self._rate = Throughput()

    def update(self, *, epoch: int, step: int, loss: float | None, images: int) -> None:
        """Record the step that just ended.

        Args:
            epoch: the current epoch, from 1.
            step: the step within the stage, from 1 (a resumed stage goes on from its ``first_step``).
            loss: the loss as a Python number; NaN and None are shown as they are.
            images: images processed since the last update.
        """
        now = self._clock()
        if self.step >= self.first_step:  # the first step holds compilation and cold caches
            self._rate.add(now - self._now, images, step - self.step)
        self.epoch, self.step, self.loss, self._now = epoch, step, loss, now
        self._show(now)

    @property
    def images_per_s(self) -> float:
        """Images per second of late, without the first step; 0.0 until the second update."""
        return self._rate.images_per_s

    @property
    def finished(self) -> bool:
        """Whether the last step was recorded."""
        return self.step >= self.total_steps

    def _words(self) -> list[str]:
        """Epoch, loss, images/s and the time left or taken, each where it is known."""
        words = [f"epoch {self.epoch}/{self.epochs}", f"loss {format_loss(self.loss)}"]
        if self.images_per_s > 0:
            words.append(f"{self.images_per_s:.{0 if self.images_per_s >= 100 else 1}f} images/s")
        if self.finished:
            words.append(f"took {format_seconds(self._now - self._started)}")
        elif self._rate.steps_per_s > 0:
            left = (self.total_steps - self.step) / self._rate.steps_per_s
            words.append(f"{format_seconds(left)} left")
        return words

    @abstractmethod
    def _show(self, now: float) -> None:
        """Show the step just recorded, if it is time to."""

    @abstractmethod
    def close(self) -> None:
        """Show where the stage ended, be it at its last step or before."""


class PlainStage(Stage):
    """A stage as a few plain lines."""

    def __init__(
        self,
        name: str,
        total_steps: int,
        epochs: int,
        first_step: int,
        clock: Callable[[], float],
        write: Callable[[str], None],
    ) -> None:
        super().__init__(name, total_steps, epochs, first_step, clock)
        self._write = write
        self._extra_lines = PLAIN_EXTRA_LINES
        self._shown_step = first_step - 1
        self._shown_at = -math.inf

    def _show(self, now: float) -> None:
        silence = now - self._shown_at
        first = self._shown_step < self.first_step
        last = self.finished and self._shown_step < self.total_steps
        new_tenth = self._tenth(self.step) > self._tenth(self._shown_step) and not self.finished
        if first or last or (new_tenth and silence >= PLAIN_GAP_S):
            self._line(now)
        elif self._extra_lines and silence >= PLAIN_SILENCE_S:
            self._extra_lines -= 1
            self._line(now)

    def _tenth(self, step: int) -> int:
        return 10 * step // max(self.total_steps, 1)

    def _line(self, now: float) -> None:
        epoch, *rest = self._words()
        self._write(f"{self.name}: " + ", ".join([epoch, f"step {self.step}/{self.total_steps}", *rest]))
        self._shown_step, self._shown_at = self.step, now

    def close(self) -> None:
        """Say where a stage stopped that did not reach its last step."""
        if not self.finished:
            self._write(f"{self.name}: stopped after step {self.step}/{self.total_steps}")


class LiveStage(Stage):
    """A stage as a line of a live display."""

    def __init__(
        self,
        name: str,
        total_steps: int,
        epochs: int,
        first_step: int,
        clock: Callable[[], float],
        display: rich.progress.Progress,
    ) -> None:
        super().__init__(name, total_steps, epochs, first_step, clock)
        self._display = display
        self._task = display.add_task(name, total=total_steps, completed=first_step - 1, status="")
        self._shown_at = -math.inf

    def _show(self, now: float) -> None:
        # The display redraws four times a second at most; handing it every step would only cost time.
        if now - self._shown_at >= LIVE_GAP_S or self.finished:
            self._push()
            self._shown_at = now

    def _push(self) -> None:
        self._display.update(self._task, completed=self.step, status="  ".join(self._words()))

    def close(self) -> None:
        """Show the last step recorded."""
        if self.step >= self.first_step:
            self._push()


class Progress:
    """What a run shows while it works.

    Args:
        console: where to write; a new one on standard output by default. Its file decides: a terminal gets a live
            display, anything else plain lines, also under FORCE_COLOR.
        clock: seconds as a float; for tests.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.console = Console() if console is None else console
        self._clock = clock
        isatty = getattr(self.console.file, "isatty", None)
        self.live = bool(isatty and isatty()) and self.console.is_terminal and not self.console.is_dumb_terminal
        self._display: rich.progress.Progress | None = None

    @contextmanager
    def stage(self, name: str, total_steps: int, epochs: int, *, first_step: int = 1) -> Iterator[Stage]:
        """Open a stage; stages may nest.

        Args:
            name: what the user reads, such as ``"pretrain"``.
            total_steps: steps of the whole stage.
            epochs: epochs of the whole stage.
            first_step: the step the first ``update`` will report; above 1 for a resumed stage.
        """
        if not self.live:
            plain = PlainStage(name, total_steps, epochs, first_step, self._clock, self.note)
            try:
                yield plain
            finally:
                plain.close()
            return
        with self._shared_display() as display:
            live = LiveStage(name, total_steps, epochs, first_step, self._clock, display)
            try:
                yield live
            finally:
                live.close()

    def note(self, line: str) -> None:
        """Print one line; above the live display where there is one."""
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    @contextmanager
    def _shared_display(self) -> Iterator[rich.progress.Progress]:
        """The live display; nested stages share that of the outermost."""
        if self._display is not None:
            yield self._display
            return
        one_line = Column(no_wrap=True)
        display = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False, table_column=one_line),
            rich.progress.BarColumn(bar_width=10),
            rich.progress.TextColumn("{task.fields[status]}", markup=False, table_column=one_line.copy()),
            console=self.console,
            refresh_per_second=4,
        )
        try:
            with display:
                self._display = display
                yield display
        finally:
            self._display = None


def format_loss(loss: float | None) -> str:
    """A loss with four significant digits; NaN, infinities and None by name."""
    return "none" if loss is None else f"{loss:#.4g}" if math.isfinite(loss) else str(float(loss))


def format_seconds(seconds: float) -> str:
    """A duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
