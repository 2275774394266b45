"""Brightness, saturation, contrast, JPEG, pixelation, elastic: [B, C, H, W] in [0, 1] -> the same shape."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clead.protocols.corruptions.blur import coordinates, smooth, warp
from clead.protocols.corruptions.draws import Draws


def brightness(x: Tensor, added: float, draws: Draws) -> Tensor:
    """Add to the value of hue, saturation, value: the largest channel."""
    value = x.amax(1, keepdim=True)
    brighter = (value + added).clamp(0, 1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-12), brighter)


def saturate(x: Tensor, settings: tuple[float, float], draws: Draws) -> Tensor:
    """The saturation of hue, saturation, value becomes a s + b; gray counts as red: (a, b)."""
    value = x.amax(1, keepdim=True)
    saturation = (value - x.amin(1, keepdim=True)) / value.clamp(min=1e-12)
    wanted = (settings[0] * saturation + settings[1]).clamp(0, 1)
    red = value * (1 - wanted * torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype).view(1, 3, 1, 1))
    return torch.where(saturation > 0, value - (value - x) * wanted / saturation.clamp(min=1e-12), red)


def contrast(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """Shrink the distance from the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """JPEG there and back."""

    def through(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _each_image(x, through)


def pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Fewer pixels and back, both by box averages."""
    height, width = x.shape[2:]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    return _each_image(
        x, lambda image: image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    )


def _each_image(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    integers = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    gray = x.shape[1] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if gray else image))) for image in integers]
    stacked = torch.from_numpy(np.stack(changed)).to(x.dtype) / 255
    return stacked[:, None] if gray else stacked.permute(0, 3, 1, 2)


def elastic_transform(x: Tensor, settings: tuple[float, float, float], draws: Draws) -> Tensor:
    """Jitter three points, then bend: (strength, sigma, jitter), as shares of the image's side."""
    side = min(x.shape[2:])
    strength, sigma, jitter = (side * share for share in settings)
    rows, columns = coordinates(x)
    bend = torch.zeros(len(x), 2, *x.shape[2:], dtype=x.dtype)
    if strength:
        bend = strength * smooth(draws.uniform(2, *x.shape[2:], low=-1.0, high=1.0), sigma, truncate=3.0)
    middle, arm = side // 2, side // 3
    corners = [(middle + arm, middle + arm), (middle + arm, middle - arm), (middle - arm, middle - arm)]
    points = torch.tensor(corners, dtype=torch.float64)
    moved = points + draws.uniform(3, 2, low=-jitter, high=jitter, part=1).double()
    # The affine map that takes each moved corner back to where it was: [moved, 1] A = points.
    back = torch.linalg.solve(
        torch.cat([moved, torch.ones(len(x), 3, 1, dtype=torch.float64)], 2), points.expand_as(moved)
    )
    at = torch.stack([rows + bend[:, 0], columns + bend[:, 1], torch.ones_like(bend[:, 0])], -1).double()
    source = (at.flatten(1, 2) @ back).view(len(x), *x.shape[2:], 2)
    return warp(x, source[..., 0], source[..., 1], edge="reflection")
