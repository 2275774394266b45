"""Where pixels come from: affine maps, crops and flips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.augment.base import per_image


@dataclass(frozen=True)
class RandomAffine:
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

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Uniform shifts (right, down), angle (anticlockwise) and magnification, from u [4, B]."""
        low, high = self.scale
        return affine(
            images,
            right=(2 * u[0] - 1) * self.shift,
            down=(2 * u[1] - 1) * self.shift,
            degrees=(2 * u[2] - 1) * self.rotation,
            scale=low + u[3] * (high - low),
        )


def affine(images: Tensor, right: Tensor, down: Tensor, degrees: Tensor, scale: Tensor) -> Tensor:
    """Content magnified by ``scale`` and turned anticlockwise about the centre, then moved ``right`` and ``down``.

    Args:
        images: float [B, C, H, W].
        right: float64 [B], pixels.
        down: float64 [B], pixels.
        degrees: float64 [B].
        scale: float64 [B], above 0.

    Returns:
        Images [B, C, H, W], bilinear, 0 outside.
    """
    height, width = images.shape[2:]
    x, y = _centres(width, images) - (width - 1) / 2, _centres(height, images) - (height - 1) / 2
    angle = torch.deg2rad(degrees)
    cos, sin = ((f(angle) / scale).to(images.dtype)[:, None, None] for f in (torch.cos, torch.sin))
    x = x[None, None, :] - right.to(images.dtype)[:, None, None]  # [B, 1, W]
    y = y[None, :, None] - down.to(images.dtype)[:, None, None]  # [B, H, 1]
    # The inverse map: an output pixel's place in the input. y points down.
    source_x = cos * x - sin * y + (width - 1) / 2
    source_y = sin * x + cos * y + (height - 1) / 2
    return _sample(images, source_x, source_y, padding_mode="zeros")


@dataclass(frozen=True)
class RandomCrop:
    """Pad with ``padding`` black pixels on every side and cut out the original size anywhere: exact, whole pixels."""

    padding: int
    draws = 2
    color = False

    def faded(self, strength: float) -> RandomCrop:
        """Less padding, in whole pixels."""
        return RandomCrop(round(strength * self.padding))

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Top and left edge uniform in 0 … 2 padding, from u [2, B]."""
        top, left = (_integer(row, 2 * self.padding + 1) for row in u)
        height, width = images.shape[2:]
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = left[:, None] + torch.arange(width, device=images.device)
        padded = F.pad(images, [self.padding] * 4).permute(0, 2, 3, 1)
        sample = torch.arange(len(images), device=images.device)
        return padded[sample[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability ``p``."""

    p: float = 0.5
    draws = 1
    color = False

    def faded(self, strength: float) -> HorizontalFlip:
        """Itself: a mirror image is as strange at any time."""
        return self

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Flips where u [1, B] is below ``p``."""
        return torch.where(per_image(u[0] < self.p), images.flip(-1), images)


@dataclass(frozen=True)
class RandomResizedCrop:
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

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Ten areas, ten aspects, then the place, from u [22, B]."""
        return resized_crop(images, *self.boxes(u, *images.shape[2:]))

    def boxes(self, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width, int64 [B] each, from u [22, B]."""
        areas = height * width * (self.scale[0] + u[:10] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspects = torch.exp(low + u[10:20] * (high - low))
        widths, heights = torch.sqrt(areas * aspects).round().long(), torch.sqrt(areas / aspects).round().long()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.to(torch.uint8).argmax(0, keepdim=True)
        fallback_height, fallback_width = self._fallback(height, width)
        box_height = torch.where(fits.any(0), heights.gather(0, first)[0], fallback_height)
        box_width = torch.where(fits.any(0), widths.gather(0, first)[0], fallback_width)
        top = torch.where(fits.any(0), _integer(u[20], height - box_height + 1), (height - box_height) // 2)
        left = torch.where(fits.any(0), _integer(u[21], width - box_width + 1), (width - box_width) // 2)
        return top, left, box_height, box_width

    def _fallback(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio
        return min(height, round(width / low)), min(width, round(height * high))


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """The box of each image (int64 [B] each, pixels) resized to the whole image: bilinear, no antialiasing."""
    source_x = _source(_centres(images.shape[3], images), left, width, images.shape[3])
    source_y = _source(_centres(images.shape[2], images), top, height, images.shape[2])
    return _sample(images, source_x[:, None, :], source_y[:, :, None], padding_mode="border")


def _source(place: Tensor, start: Tensor, length: Tensor, size: int) -> Tensor:
    """[B, size] input places of a box stretched to ``size`` pixels; beyond its outer centres the edge is repeated."""
    start, length = start[:, None], length[:, None]
    inside = (place + 0.5) * (length.to(place.dtype) / size) - 0.5
    return start + torch.minimum(inside.clamp(min=0), (length - 1).to(place.dtype))


def _sample(images: Tensor, x: Tensor, y: Tensor, padding_mode: str) -> Tensor:
    """Bilinear values at pixel places x and y, broadcastable to [B, H, W]; pixel centres have whole numbers."""
    height, width = images.shape[2:]
    shape = (len(images), height, width)
    grid = torch.stack([((2 * x + 1) / width - 1).expand(shape), ((2 * y + 1) / height - 1).expand(shape)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def _centres(size: int, images: Tensor) -> Tensor:
    return torch.arange(size, dtype=images.dtype, device=images.device)


def _integer(u: Tensor, count: Tensor | int) -> Tensor:
    """Uniform in 0 … count - 1: in float64 24 random bits times a count are exact, so never round up to ``count``."""
    return (u * count).floor().long()
