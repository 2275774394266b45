"""Where pixels come from: affine maps, crops and flips.

``clead_kernels/augment/reference.py`` has the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clead.augment.base import Fused, Step


@dataclass(frozen=True)
class RandomAffine(Fused):
    """Scale and rotate about the centre, then shift; bilinear, black outside.

    Attributes:
        shift: largest shift along each axis, in pixels.
        rotation: largest rotation either way, in degrees.
        scale: smallest and largest magnification.
    """

    shift: float
    rotation: float
    scale: tuple[float, float]
    draws = 4
    color = False

    def faded(self, strength: float) -> RandomAffine:
        """Smaller ranges."""
        return RandomAffine(
            strength * self.shift,
            strength * self.rotation,
            (1 - strength + strength * self.scale[0], 1 - strength + strength * self.scale[1]),
        )

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Uniform shifts (right, down), angle (anticlockwise) and magnification, from u [4, B]."""
        low, high = self.scale
        shifts, degrees = (2 * u[:2] - 1) * self.shift, (2 * u[2:3] - 1) * self.rotation
        return "affine", torch.cat([shifts, degrees, low + u[3:] * (high - low)])


@dataclass(frozen=True)
class RandomCrop(Fused):
    """Pad with ``padding`` black pixels on every side and cut out the original size anywhere: exact, whole pixels."""

    padding: int
    draws = 2
    color = False

    def faded(self, strength: float) -> RandomCrop:
        """Less padding, in whole pixels."""
        return RandomCrop(round(strength * self.padding))

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Top and left edge uniform in 0 … 2 padding, from u [2, B]."""
        return "crop", _integer(u, 2 * self.padding + 1) - self.padding


@dataclass(frozen=True)
class HorizontalFlip(Fused):
    """Mirror left and right with probability ``p``."""

    p: float = 0.5
    draws = 1
    color = False

    def faded(self, strength: float) -> HorizontalFlip:
        """Itself: a mirror image is as strange at any time."""
        return self

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Flips where u [1, B] is below ``p``."""
        return "flip", (u < self.p).to(u.dtype)


@dataclass(frozen=True)
class RandomResizedCrop(Fused):
    """A box of random area and aspect, resized to the size of the image.

    torchvision's distribution: up to ten tries of an area uniform in ``scale`` and an aspect log-uniform in ``ratio``;
    the first box that fits is put anywhere; if none fits, the largest central box with an admitted aspect. A box is
    never larger than the image, so bilinear without antialiasing is what torchvision does too.

    Attributes:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    draws = 22
    color = False

    def faded(self, strength: float) -> RandomResizedCrop:
        """Larger areas, of the same aspects."""
        return RandomResizedCrop(
            (1 - strength + strength * self.scale[0], 1 - strength + strength * self.scale[1]), self.ratio
        )

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """Ten areas, ten aspects, then the place, from u [22, B]."""
        return "resized_crop", torch.stack(self.boxes(u, height, width))

    def boxes(self, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width, whole numbers in float64 [B] each, from u float64 [22, B]."""
        areas = height * width * (self.scale[0] + u[:10] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspects = torch.exp(low + u[10:20] * (high - low))
        widths, heights = torch.sqrt(areas * aspects).round(), torch.sqrt(areas / aspects).round()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first, any_fits = fits.to(torch.uint8).argmax(0, keepdim=True), fits.any(0)
        fallback_height, fallback_width = self._fallback(height, width)
        box_height = torch.where(any_fits, heights.gather(0, first)[0], fallback_height)
        box_width = torch.where(any_fits, widths.gather(0, first)[0], fallback_width)
        top = torch.where(any_fits, _integer(u[20], height - box_height + 1), (height - box_height) // 2)
        left = torch.where(any_fits, _integer(u[21], width - box_width + 1), (width - box_width) // 2)
        return top, left, box_height, box_width

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio
        return min(height, round(width / low)), min(width, round(height * high))


def _integer(u: Tensor, count: Tensor | int) -> Tensor:
    """Uniform in 0 … count - 1: in float64 24 random bits times a count are exact, so never round up to ``count``."""
    return (u * count).floor()
