"""``--profile N``: a trace of N training steps, and one page that says where they go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, record_function

from clead.engine.files import write_atomic

T = TypeVar("T")
OPERATORS = 15
_PREFIX = "clead: "
_NUMBERS = {"calls a step", "ms a step", "share"}
# Parts that other parts are taken out of; what runs inside of an attack is the attack.
_OUTER = {"loss", "backward"}
_ABOUT = {
    "loading": "images and labels of the batch",
    "augmentation": "",
    "attack": "the inner maximisation, with all its passes",
    "forward": "encoder and heads, outside of attacks",
    "loss": "what else is done to compute the loss",
    "backward": "of the loss; with cache_batch the second forward passes too",
    "optimizer": "",
    "epoch start": "what the method does before an epoch",
    "other": "checks, logs, checkpoints",
}


class Profile:
    """Times the parts of the steps of one stage, and records them with torch's profiler.

    As a context manager around the stage. The first step warms up; the ``steps`` after it are profiled, or as many as
    there are; the others run as they would without it.

    Args:
        steps: how many; 0 does nothing.
        folder: where ``trace.json.gz`` and ``summary.md`` go.
        places: (class, name of a function of it, part): whose time is to be told apart.
        note: prints a line.
    """

    def __init__(
        self,
        steps: int = 0,
        folder: Path = Path(),
        places: tuple[tuple[type, str, str], ...] = (),
        note: Callable[[str], None] = print,
    ) -> None:
        self.steps, self._folder, self._places, self._note = steps, folder, places, note
        self.seconds: dict[str, float] = dict.fromkeys(_ABOUT, 0.0)
        self.done = 0
        self._warm = False
        self._profiler: Any = None
        self._stack: list[str] = ["other"]
        self._mark = 0.0
        self._cuda = False
        self._first = (0, 0)  # number and images of the first step
        self._originals: list[tuple[type, str, Any]] = []

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._profiler is not None:
            self._stop()
            if kind is None:
                self._write()

    def each(self, batches: Iterator[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """The same batches, with their numbers; starts before one and stops after another."""
        while True:
            if self._profiler is not None and self.done == self.steps:
                self._stop()
                self._write()
            elif self._warm and self._profiler is None and self.done < self.steps:
                self._start()
            with self.part("loading"):
                found = next(batches, None)
            if found is None:
                return
            if self._profiler is not None:
                self._first = self._first if self.done else (found[0] + 1, len(getattr(found[1], "images", ())))
                self.done += 1
            self._warm = True
            yield found

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as that of ``name``, and not as that of the part around it."""
        if self._profiler is None or (len(self._stack) > 1 and self._stack[-1] not in _OUTER):
            yield
            return
        self._advance()
        self._stack.append(name)
        try:
            with record_function(_PREFIX + name):
                yield
        finally:
            self._advance()
            self._stack.pop()

    def labelled(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """``function``, whose time counts as that of ``name``."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> T:
            if torch.compiler.is_compiling():
                return function(*arguments, **options)
            with self.part(name):
                return function(*arguments, **options)

        return call

    def _advance(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._mark
        self._mark = now

    def _start(self) -> None:
        self._cuda = torch.cuda.is_available()
        for owner, name, part in self._places:
            self._originals.append((owner, name, owner.__dict__[name]))
            setattr(owner, name, self.labelled(part, owner.__dict__[name]))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self._mark = time.perf_counter()

    def _stop(self) -> None:
        self._advance()
        self._profiler.stop()
        for owner, name, original in self._originals:
            setattr(owner, name, original)

    def _write(self) -> None:
        profiler, self._profiler = self._profiler, None
        self._folder.mkdir(exist_ok=True)
        temporary = self._folder / ".tmp-trace.json.gz"
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(self._folder / "trace.json.gz")
        write_atomic(self._folder / "summary.md", self._summary(profiler.key_averages()).encode())
        self._note(f"profile of {self.done} steps: {self._folder / 'summary.md'} and trace.json.gz")

    def _summary(self, operators: Any) -> str:
        number, images = self._first
        step = sum(self.seconds.values()) / self.done
        rate = f"{images / step:,.1f} images/s, " if images else ""
        lines = [
            "# Where a step goes",
            "",
            f"Steps {number} to {number + self.done - 1}, {images} images each: {1e3 * step:.1f} ms a step, {rate}"
            f"on {torch.cuda.get_device_name() if self._cuda else 'the CPU'} with the profiler watching, which costs "
            "time of its own. `trace.json.gz` opens in https://ui.perfetto.dev or chrome://tracing.",
            "",
            *_table(
                ("part", "ms a step", "share", "what"),
                [
                    (name, f"{1e3 * seconds / self.done:.2f}", f"{seconds / self.done / step:.1%}", _ABOUT[name])
                    for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
                    if seconds
                ],
            ),
        ]
        for field, title in self._kinds():
            lines += ["", f"## {title}", "", *self._operators(operators, field)]
        return "\n".join(lines) + "\n"

    def _kinds(self) -> list[tuple[str, str]]:
        """Times of operators, and how they are called."""
        kinds = [("self_cpu_time_total", "Operators by their own time on the CPU")]
        if self._cuda:
            kinds.insert(0, ("self_device_time_total", "Operators by the time of their kernels"))
        return kinds

    def _operators(self, found: Any, field: str) -> list[str]:
        """The table of the slowest; times are microseconds of all steps."""
        events = [e for e in found if e.device_type.name == "CPU" and not e.key.startswith(_PREFIX)]
        events = sorted(events, key=lambda event: -getattr(event, field))
        total = sum(getattr(event, field) for event in events) or 1.0
        rows = []
        for event in events[:OPERATORS]:
            own = getattr(event, field)
            numbers = (f"{event.count / self.done:.1f}", f"{own / 1e3 / self.done:.2f}", f"{own / total:.1%}")
            rows.append((f"`{event.key}`", *numbers))
        return _table(("operator", "calls a step", "ms a step", "share"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Markdown; the columns named for numbers to the right."""
    rule = tuple("---:" if name in _NUMBERS else "---" for name in head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
