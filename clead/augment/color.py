"""What pixels look like: brightness, contrast, saturation, hue and grey.

Factors are float [B]; images are [B, C, H, W] in [0, 1], and so are results. Contrast, saturation and hue need red,
green and blue. A factor of 1 (0 for the hue) changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clead.augment.base import per_image


@dataclass(frozen=True)
class RandomBrightness:
    """Multiply by a factor uniform in [1 - strength, 1 + strength], clipped to [0, 1]."""

    strength: float
    draws = 1
    color = False

    def faded(self, strength: float) -> RandomBrightness:
        """A smaller range."""
        return RandomBrightness(strength * self.strength)

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """One factor per image from u [1, B]."""
        return adjust_brightness(images, _factor(u[0], self.strength))


@dataclass(frozen=True)
class ColorJitter:
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

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Whether, and the four factors, from u [5, B]."""
        jittered = adjust_brightness(images, _factor(u[1], self.brightness))
        jittered = adjust_contrast(jittered, _factor(u[2], self.contrast))
        jittered = adjust_saturation(jittered, _factor(u[3], self.saturation))
        jittered = adjust_hue(jittered, (2 * u[4] - 1) * self.hue)
        return torch.where(per_image(u[0] < self.p), jittered, images)


@dataclass(frozen=True)
class RandomGrayscale:
    """Replace all three channels by the luma with probability ``p``."""

    p: float
    draws = 1
    color = True

    def faded(self, strength: float) -> RandomGrayscale:
        """Less often."""
        return RandomGrayscale(strength * self.p)

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Grey where u [1, B] is below ``p``."""
        return torch.where(per_image(u[0] < self.p), luma(images), images)


def luma(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), [B, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (red * 0.299 + green * 0.587 + blue * 0.114)[:, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor · images."""
    return (images * _like(factor, images)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from the image's mean luma: factor · images + (1 - factor) · mean."""
    grey = luma(images)
    # Summed as integers: a float sum's last bit would depend on how threads share the batch.
    total = (grey * 2.0**24).to(torch.int64).sum((-3, -2, -1), keepdim=True)
    mean = (total.to(torch.float64) / (2.0**24 * grey.shape[2] * grey.shape[3])).to(images.dtype)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from the pixel's luma: factor · images + (1 - factor) · luma."""
    return _blend(images, luma(images), factor)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of the HSV hexcone by ``turn`` circles, keeping saturation and value."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sextant = sextant + 6 * _like(turn, images)[:, 0]
    channels = []
    for offset in (5, 3, 1):
        # A channel is full within one sextant of its own hue, falls to nothing at two, and is nothing beyond.
        distance = sextant + offset
        distance = distance - 6 * torch.floor(distance / 6)
        channels.append(value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.stack(channels, dim=1).clamp(0, 1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = _like(factor, images)
    return (images * weight + other * (1 - weight)).clamp(0, 1)


def _like(values: Tensor, images: Tensor) -> Tensor:
    return per_image(values.to(images.dtype))


def _factor(u: Tensor, strength: float) -> Tensor:
    low, high = max(0.0, 1 - strength), 1 + strength
    return low + u * (high - low)
