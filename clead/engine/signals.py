"""Signals that stop a run wait until its step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from clead.errors import STOPS, raise_stopped


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Collect the signals of STOPS instead of acting on them, for the caller to act on; a second one acts at once.

    Yields:
        The signal that arrived, if one did. Signals that are ignored stay so, and outside of the main thread, which
        alone can be told of signals, nothing is held back.
    """
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            raise_stopped(number, frame)
        held.append(number)

    before = {number: signal.getsignal(number) for number in STOPS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, hold)
    try:
        yield held
    finally:
        for number in ours:
            signal.signal(number, before[number])
