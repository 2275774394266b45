"""Batches made ready in the background, while steps run on those before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from clead.methods.base import Batch

T = TypeVar("T")


def ahead(make: Callable[[T], Batch], what: Iterable[T], count: int, device: torch.device) -> Iterator[Batch]:
    """``make`` of everything in ``what``, in that order, of which a thread does up to ``count`` before their turn.

    The batches are the same for any count, as ``make`` must be a function of its argument. What it raises is raised
    where its batch would have come. When the iterator is exhausted or closed, the thread ends with the batch it is at.

    Args:
        make: makes a batch; with a count above 0 from another thread.
        what: its arguments.
        count: batches ahead; 0 makes each when it is asked for, without a thread.
        device: where the batches are. On a CUDA device they are made on a stream of their own.
    """
    if not count:
        yield from map(make, what)
        return
    lane = _Lane(make, device) if device.type == "cuda" else None
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "clead-prefetch") as pool:
        try:
            for argument in what:
                waiting.append(pool.submit(lane.made if lane else make, argument))
                if len(waiting) > count:
                    yield _taken(waiting.popleft(), lane)
            while waiting:
                yield _taken(waiting.popleft(), lane)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Lane:
    """A stream on which batches are made and copied beside the steps."""

    def __init__(self, make: Callable[[Any], Batch], device: torch.device) -> None:
        self._make, self._device = make, device
        self._stream = torch.cuda.Stream(device)
        # What the batches are made of was computed before this point, and nothing later needs to be waited for.
        self._begun = torch.cuda.current_stream(device).record_event()

    def made(self, argument: Any) -> tuple[Batch, torch.cuda.Event]:
        """In the thread: the batch, and what marks that it is complete."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._begun)
            return self._make(argument), self._stream.record_event()

    def taken(self, batch: Batch, complete: torch.cuda.Event) -> Batch:
        """For the stream of the steps, which keeps the memory until it is done with it."""
        now = torch.cuda.current_stream(self._device)
        now.wait_event(complete)
        for part in filter(None, (batch, batch.unlabeled)):
            for value in vars(part).values():
                if isinstance(value, Tensor):
                    value.record_stream(now)
        return batch


def _taken(future: Future[Any], lane: _Lane | None) -> Batch:
    if lane is None:
        plain: Batch = future.result()
        return plain
    return lane.taken(*future.result())
