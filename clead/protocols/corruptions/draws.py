"""Random numbers for one corruption of a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clead.rng import Rng


@dataclass(frozen=True)
class Draws:
    """Numbers that depend on the corruption and the image's index only, not on severity, batch or model.

    Attributes:
        rng: stream of the corruption, one sample id per image.
    """

    rng: Rng

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, part: int = 0) -> Tensor:
        """float32 [B, *shape] in [low, high); another ``part`` gives other numbers."""
        return self.rng.at(part).uniform(_count(shape), low, high).view(-1, *shape)

    def normal(self, *shape: int, part: int = 0) -> Tensor:
        """float32 [B, *shape], standard normal."""
        return self.rng.at(part).normal(_count(shape)).view(-1, *shape)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
