"""What pixels look like: brightness, contrast, saturation, hue, grey and blur.

``clead_kernels/augment/reference.py`` has the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clead.augment.base import Fused, Step


@dataclass(frozen=True)
class RandomBrightness(Fused):
    """Multiply by a factor uniform in [1 - strength, 1 + strength], clipped to [0, 1]."""

    strength: float
    draws = 1
    color = False

    def faded(self, strength: float) -> RandomBrightness:
        """A smaller range."""
        return RandomBrightness(strength * self.strength)

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """One factor per image from u [1, B]."""
        return "brightness", _factor(u, self.strength)


@dataclass(frozen=True)
class ColorJitter(Fused):
    """With probability ``p``, brightness, contrast, saturation and hue, always in this order.

    Factors are uniform in [max(0, 1 - s), 1 + s], the turn of the hue in [-hue, hue] circles, as in torchvision, which
    shuffles the order.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float
    draws = 5
    color = True

    def faded(self, strength: float) -> ColorJitter:
        """Smaller ranges, less often."""
        return ColorJitter(*(strength * x for x in (self.brightness, self.contrast, self.saturation, self.hue, self.p)))

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Whether, and the four factors, from u [5, B]."""
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [_factor(row, strength) for row, strength in zip(u[1:4], strengths, strict=True)]
        return "jitter", torch.stack([(u[0] < self.p).to(u.dtype), *factors, (2 * u[4] - 1) * self.hue])


@dataclass(frozen=True)
class RandomGrayscale(Fused):
    """Replace all three channels by the luma with probability ``p``."""

    p: float
    draws = 1
    color = True

    def faded(self, strength: float) -> RandomGrayscale:
        """Less often."""
        return RandomGrayscale(strength * self.p)

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Grey where u [1, B] is below ``p``."""
        return "grayscale", (u < self.p).to(u.dtype)


@dataclass(frozen=True)
class GaussianBlur(Fused):
    """With probability ``p``, a Gaussian with a standard deviation uniform in ``sigma``, in pixels."""

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    draws = 2
    color = False

    def faded(self, strength: float) -> GaussianBlur:
        """Less often, by less."""
        return GaussianBlur(strength * self.p, (strength * self.sigma[0], strength * self.sigma[1]))

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Whether, and the standard deviation, from u [2, B]."""
        low, high = self.sigma
        return "blur", torch.where(u[:1] < self.p, low + u[1:] * (high - low), 0)


def _factor(u: Tensor, strength: float) -> Tensor:
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + u * (high - low)
