"""Snow, frost, fog and spatter: images [B, C, H, W] in [0, 1] -> the same shape, not clamped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.protocols.corruptions.blur import enlarge, smooth, streak
from clead.protocols.corruptions.draws import Draws

_WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
_MUD = (63 / 255, 42 / 255, 20 / 255)


def gray(x: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) [B, 1, H, W]; one channel is its own."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _colour(rgb: tuple[float, float, float], x: Tensor) -> Tensor:
    colour = torch.tensor(rgb, dtype=x.dtype).view(1, 3, 1, 1)
    return colour if x.shape[1] == 3 else gray(colour)


def plasma(x: Tensor, decay: float, draws: Draws) -> Tensor:
    """Cloudy noise [B, 1, H, W] from 0 to 1 in each image: octaves of random grids, each weaker by decay squared."""
    height, width = x.shape[2:]
    total, cells, weight = torch.zeros_like(x[:, :1]), 2, 1.0
    while cells <= 2 * max(height, width):
        grid = draws.uniform(1, cells, cells, low=-1.0, high=1.0, part=cells)
        total = total + weight * F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
        cells, weight = 2 * cells, weight / decay**2
    low = total.amin((2, 3), keepdim=True)
    return (total - low) / (total.amax((2, 3), keepdim=True) - low)


def fog(x: Tensor, settings: tuple[float, float], draws: Draws) -> Tensor:
    """Add plasma and restore the brightest value: (weight, decay)."""
    weight, decay = settings
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + weight * plasma(x, decay, draws)) * brightest / (brightest + weight)


def frost(x: Tensor, settings: tuple[float, float], draws: Draws) -> Tensor:
    """Mix with a texture of crystals: (weight of the image, weight of the frost). The texture is ridged noise."""
    ridges = 1 - (2 * plasma(x, 1.3, draws) - 1).abs()
    return settings[0] * x + settings[1] * ridges**2


def snow(x: Tensor, settings: tuple[float, ...], draws: Draws) -> Tensor:
    """Flakes that fall, over a whitened image: (mean, sd, zoom, threshold, radius, sigma, weight of the image)."""
    mean, sd, zoom, threshold, radius, sigma, weight = settings
    flakes = enlarge(mean + sd * draws.normal(1, *x.shape[2:]), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = streak(flakes, radius, sigma, draws.uniform(1, low=-135.0, high=-45.0, part=1).squeeze(1))
    whitened = weight * x + (1 - weight) * torch.maximum(x, gray(x) * 1.5 + 0.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))


def spatter(x: Tensor, settings: tuple[float, ...], draws: Draws) -> Tensor:
    """Drops of water or splashes of mud: (mean, sd, blur, threshold, strength or blur of the mud, 1 for mud)."""
    mean, sd, blur, threshold, strength, mud = settings
    liquid = smooth(mean + sd * draws.normal(1, *x.shape[2:]), blur)
    wet = liquid >= threshold
    if mud:
        cover = smooth(wet.to(x.dtype), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return x * (1 - cover) + _colour(_MUD, x) * cover
    film = smooth(torch.where(wet, liquid, 0.0), 0.5)
    film = film / film.amax((2, 3), keepdim=True).clamp(min=1e-6)
    return x + strength * film * _colour(_WATER, x)
