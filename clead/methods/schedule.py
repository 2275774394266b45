"""Settings that move during training."""

from __future__ import annotations


def linear(start: float, end: float, progress: float) -> float:
    """The point between ``start`` and ``end`` at ``progress`` in [0, 1]."""
    return start + (end - start) * progress
