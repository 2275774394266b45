"""Normal and exponential random integers from ``philox``: their sums are exact, hence the same in any order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import philox
from .arithmetic import sqrt


def gaussian(key: int, sample_ids: Tensor, count: int, *, step: int) -> Tensor:
    """Standard normal numbers in units of 2⁻¹⁶, int64 [B, count]: ⌊z · 2¹⁶ + ½⌋ with z by Box-Muller in float64.

    z_{2k} = r cos φ and z_{2k+1} = r sin φ from draws 2k (r = √(-2 ln((w + 1) · 2⁻³²))) and 2k + 1 (φ = 2π · w · 2⁻³²).
    Logarithm, cosine and sine are the short series below and not the library's, whose last bits differ by machine.
    """
    pairs = (count + 1) // 2
    words = philox.random_words(key, sample_ids, 2 * pairs, step=step).reshape(-1, pairs, 2)
    radius = sqrt(-2.0 * _log_fraction(words[..., 0] + 1))
    cos, sin = _cos_sin(words[..., 1])
    z = torch.stack((radius * cos, radius * sin), dim=-1).flatten(1)[:, :count]
    return torch.floor(z * 65536.0 + 0.5).to(torch.int64)


def exponential(key: int, sample_ids: Tensor, count: int, *, step: int) -> tuple[Tensor, Tensor]:
    """Standard exponential numbers in units of 2⁻³², int64 [B, count], and a fair coin for each, bool [B, count].

    Draw e gives ⌊-ln(((w | 1) + 1) · 2⁻³²) · 2³² + ½⌋ from its upper 31 bits, and the coin from the lowest.
    """
    words = philox.random_words(key, sample_ids, count, step=step)
    lengths = torch.floor(_log_fraction((words | 1) + 1) * -4294967296.0 + 0.5)
    return lengths.to(torch.int64), (words & 1).bool()


def _log_fraction(n: Tensor) -> Tensor:
    """ln(n · 2⁻³²) for integers n in [1, 2³²], to 1e-11, by ln m = 2 artanh((m - 1)/(m + 1)), m in [√½, √2)."""
    mantissa, exponent = torch.frexp(n.double())
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = torch.where(small, 2.0 * mantissa, mantissa), exponent - small.to(exponent.dtype)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _horner([1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0], s * s)
    return (exponent - 32).double() * math.log(2.0) + 2.0 * s * series


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π · word · 2⁻³², to 1e-9: the top two bits are the quadrant, the rest goes into Taylor series."""
    quadrant, angle = word >> 30, (word & 0x3FFFFFFF).double() * (math.pi / 2 * 2.0**-30)
    square = angle * angle
    cos = _horner([(-1) ** k / math.factorial(2 * k) for k in range(7, -1, -1)], square)
    sin = angle * _horner([(-1) ** k / math.factorial(2 * k + 1) for k in range(6, -1, -1)], square)
    odd = (quadrant & 1).bool()
    cos, sin = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    flip = quadrant >= 2
    return torch.where(flip, -cos, cos), torch.where(flip, -sin, sin)


def _horner(coefficients: list[float], x: Tensor) -> Tensor:
    """The polynomial with these coefficients, highest power first: one multiplication and one addition each."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
