"""Gaussian, shot, impulse and speckle noise: images [B, C, H, W] in [0, 1] -> the same shape, not clamped."""

from __future__ import annotations

import torch
from torch import Tensor

from clead.protocols.corruptions.draws import Draws


def gaussian_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Add sigma N(0, 1)."""
    return x + sigma * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson(photons x) / photons, by inversion."""
    from scipy import stats  # half a second of import time that nothing else needs

    quantiles = 1 - draws.uniform(*x.shape[1:]).double()  # in (0, 1]; 1 would be infinite
    counts = stats.poisson.ppf(quantiles.clamp(max=1 - 1e-9).numpy(), photons * x.double().numpy())
    return torch.from_numpy(counts / photons).to(x.dtype)


def impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    """A share of the values becomes 0 or 1, one half each."""
    u = draws.uniform(*x.shape[1:])
    return torch.where(u < share / 2, 0.0, torch.where(u < share, 1.0, x))


def speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Add x sigma N(0, 1)."""
    return x + x * sigma * draws.normal(*x.shape[1:])
