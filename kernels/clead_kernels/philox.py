"""Philox4x32-10, the counter-based generator behind every random number of clead.

A draw is a pure function of (key, step, view, sample, draw): no state, so results do not depend on batch size,
order, device or the point a run was resumed from. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.

The 128-bit counter is four 32-bit words: (draw // 4, sample, view, step); draw % 4 selects the output word.
``sample_ids`` are int64: the low 32 bits are the sample, the high 32 bits the view.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(key: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        key: 64-bit key; the low 32 bits are the first key word.
        counter: four broadcastable int64 tensors with values in [0, 2**32), first word first.

    Returns:
        Four int64 tensors with values in [0, 2**32).
    """
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # int64 products wrap modulo 2**64, so both 32-bit halves of the unsigned product are exact.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_words(key: int, sample_ids: Tensor, draws: int, *, step: int = 0) -> Tensor:
    """32-bit random words 0 … ``draws - 1`` of every sample.

    Args:
        key: 64-bit key.
        sample_ids: int64 [B]; low 32 bits sample, high 32 bits view.
        draws: words wanted per sample.
        step: training step or epoch, in [0, 2**32).

    Returns:
        int64 [B, draws] with values in [0, 2**32), on the device of ``sample_ids``.
    """
    device = sample_ids.device
    ids = sample_ids[:, None]
    block = torch.arange((draws + 3) // 4, dtype=torch.int64, device=device)[None, :]
    words = philox4x32(key, (block, ids & _MASK, (ids >> 32) & _MASK, torch.tensor(step & _MASK, device=device)))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :draws]


def uniform(key: int, sample_ids: Tensor, draws: int, *, step: int = 0) -> Tensor:
    """Uniform float32 [B, draws] in [0, 1): the top 24 bits of each word times 2**-24, so exact on every device."""
    return (random_words(key, sample_ids, draws, step=step) >> 8).to(torch.float32) * 2.0**-24
