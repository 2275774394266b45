"""Float arithmetic with one answer on every machine: roots, quotients, sums, and rounding towards x."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def round_towards(x: Tensor, value: Tensor) -> Tensor:
    """``value`` in the dtype of x: of the two neighbours, the one on the side of x."""
    if value.dtype == x.dtype:
        return value
    nearest = value.to(x.dtype)
    above = value > x
    overshoot = torch.where(above, nearest > value, nearest < value)
    bits = nearest.view(_BITS[x.dtype])
    # Floats are sign and magnitude: the magnitude grows by one where x lies further from zero than value does.
    grow = above == (bits < 0)
    return torch.where(overshoot, bits + torch.where(grow, 1, -1).to(bits.dtype), bits).view(x.dtype)


def divide(number: float | Tensor, by: Tensor) -> Tensor:
    """number / by; torch multiplies a float by the reciprocal instead, which rounds twice."""
    return torch.as_tensor(number, dtype=by.dtype) / by


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded root of float64 x ≥ 0 (above 1e-290): MKL's, which torch takes on the CPU, is off by a bit.

    One Newton step with an exact remainder: ``r * r`` is ``square + rest`` (Dekker, 1971), and x - square is exact.
    """
    root = torch.sqrt(x)
    if x.device.type != "cpu":
        return root
    high = root * 134217729.0
    high = high - (high - root)
    low = root - high
    square = root * root
    rest = ((high * high - square) + 2.0 * high * low) + low * low
    better = root + ((x - square) - rest) / (2.0 * root)
    return torch.where(torch.isfinite(better), better, root)


def power_of_two(x: Tensor) -> Tensor:
    """2ⁿ ≤ x < 2ⁿ⁺¹ for finite x > 0."""
    return x / (2.0 * torch.frexp(x).mantissa)


def ordered_sum(terms: Tensor) -> Tensor:
    """Sums over dim 1 in one fixed order, [B, n] to [B].

    Zeros fill up the last of the blocks of 128 terms, each block is folded onto its first half until one number is
    left, and so are the blocks' numbers. (A library's order depends on the machine, the threads and the batch.)
    """
    while True:
        blocks = -(-terms.shape[1] // 128)
        terms = pad(terms, (0, 128 * blocks - terms.shape[1])).reshape(len(terms), blocks, 128)
        for half in (64, 32, 16, 8, 4, 2, 1):
            terms = terms[..., :half] + terms[..., half:]
        terms = terms[..., 0]
        if blocks == 1:
            return terms[:, 0]


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """[B] or [B, 1] as [B, 1, …] beside x."""
    return value.reshape(-1, *[1] * (x.dim() - 1))
