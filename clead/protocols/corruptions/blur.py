"""Blurs: images [B, C, H, W] in [0, 1] -> the same shape; edges are repeated."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.protocols.corruptions.draws import Draws


def smooth(x: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Convolve [B, C, H, W] with a Gaussian cut at ``truncate`` sigma; 0 leaves x as it is."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=x.dtype) / sigma) ** 2)
    taps = taps / taps.sum()
    return _filter(_filter(x, taps.view(-1, 1)), taps.view(1, -1))


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with an odd kernel [h, w]."""
    height, width = kernel.shape
    padded = F.pad(x.flatten(0, 1)[:, None], (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return F.conv2d(padded, kernel[None, None].to(x.dtype)).view_as(x)


def warp(x: Tensor, rows: Tensor, columns: Tensor, edge: str = "border") -> Tensor:
    """Bilinear samples of x [B, C, H, W] at pixel coordinates ``rows`` and ``columns``, each [B, H, W]."""
    height, width = x.shape[2:]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode=edge, align_corners=True)


def coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel: [1, H, W] each."""
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows[None].to(x.dtype), columns[None].to(x.dtype)


def streak(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Motion blur: a half Gaussian along a line, its direction [B] in degrees per image."""
    rows, columns = coordinates(x)
    angle = degrees.view(-1, 1, 1) * (math.pi / 180)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(int(2 * radius) + 1)]
    taps = [
        weight * warp(x, rows + i * torch.sin(angle), columns + i * torch.cos(angle))
        for i, weight in enumerate(weights)
        if weight > 1e-4
    ]
    return torch.stack(taps).sum(0) / sum(weight for weight in weights if weight > 1e-4)


def enlarge(x: Tensor, factor: float) -> Tensor:
    """Zoom into the centre by ``factor``."""
    rows, columns = coordinates(x)
    row, column = ((size - 1) / 2 for size in x.shape[2:])
    zoomed_rows, zoomed_columns = row + (rows - row) / factor, column + (columns - column) / factor
    return warp(x, zoomed_rows.expand(len(x), -1, -1), zoomed_columns.expand(len(x), -1, -1))


def gaussian_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """A Gaussian of ``sigma`` pixels."""
    return smooth(x, sigma)


def glass_blur(x: Tensor, settings: tuple[float, int, int], draws: Draws) -> Tensor:
    """Blur, let every pixel take the value of one nearby, a few times over, and blur again: (sigma, reach, times).

    The published files were made by exchanging pixels through views of one array, which comes to the same.
    """
    sigma, reach, times = settings
    x = smooth(x, sigma)
    rows, columns = (part.long() for part in coordinates(x))
    images = torch.arange(len(x)).view(-1, 1, 1)
    for turn in range(times):
        offsets = draws.uniform(2, *x.shape[2:], low=-reach, high=reach, part=turn).floor().long()
        there = (rows + offsets[:, 0]).clamp(0, x.shape[2] - 1), (columns + offsets[:, 1]).clamp(0, x.shape[3] - 1)
        x = x.permute(0, 2, 3, 1)[images, *there].permute(0, 3, 1, 2)
    return smooth(x, sigma)


def defocus_blur(x: Tensor, settings: tuple[float, float], draws: Draws) -> Tensor:
    """A disc, its edge softened by a 3 x 3 Gaussian: (radius, sigma of the edge)."""
    radius, sigma = settings
    reach = math.ceil(radius) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype)
    disc = ((offsets[:, None] ** 2 + offsets[None] ** 2) <= radius**2).to(x.dtype)
    edge = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype) / sigma) ** 2)
    edge = edge / edge.sum()
    kernel = F.conv2d((disc / disc.sum())[None, None], (edge[:, None] * edge[None])[None, None], padding=1)
    return _filter(x, kernel[0, 0])


def motion_blur(x: Tensor, settings: tuple[float, float], draws: Draws) -> Tensor:
    """(radius, sigma), in a direction of -45 to 45 degrees."""
    return streak(x, *settings, draws.uniform(1, low=-45.0, high=45.0).squeeze(1))


def zoom_blur(x: Tensor, furthest: float, draws: Draws) -> Tensor:
    """The mean of the image and of zooms from 1 to below ``furthest`` in steps of 0.01."""
    factors = [1 + 0.01 * step for step in range(round((furthest - 1) * 100))]
    return (x + torch.stack([enlarge(x, factor) for factor in factors]).sum(0)) / (len(factors) + 1)
