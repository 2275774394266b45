"""Where the channels of feature maps lie in memory: the same numbers, convolved faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clead.models.convolution import traced_or_transformed, watched
from clead_kernels.convolution import served

CACHE = 2 * 2**20
"""Bytes next to a core, on today's servers."""


def laid_out(x: Tensor, width: int, stride: int, winograd: bool, packed: bool = False) -> Tensor:
    """x [B, C, H, W] in the layout in which a CPU convolves it fastest to ``width`` channels, at ``stride`` first.

    Channels innermost where ``winograd`` may be and is taken, whose kernels want them so, and where the float32 weights
    of a 3x3 convolution between so many channels fit into CACHE, else outermost: with AVX-512, 16 images and one
    thread, oneDNN does forward and backward of 64 channels at 32x32 in 13.8 ms innermost and 18.1 outermost, of 512 at
    4x4 in 36.0 and 20.7. Other devices and types get x as it is.
    """
    if not torch.compiler.is_compiling() and traced_or_transformed():
        return x
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x
    maps = (x.shape[0], width, *(-(-length // stride) for length in x.shape[2:]))
    taken = winograd and not watched() and served(maps, width, x.device, x.dtype, packed=packed)
    form = torch.channels_last if taken or 4 * 9 * width**2 <= CACHE else torch.contiguous_format
    if x.is_contiguous(memory_format=form):
        return x
    out: Tensor = _LaidOut.apply(x, form)  # type: ignore[no-untyped-call]
    return out


class _LaidOut(torch.autograd.Function):
    """A change of layout whose gradient goes back to the layout before it.

    That of ``contiguous`` stays as it comes, and a ReLU or a sum of two layouts takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: torch.memory_format) -> Tensor:
        ctx.before = torch.contiguous_format if form == torch.channels_last else torch.channels_last
        return x.contiguous(memory_format=form)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.contiguous(memory_format=ctx.before), None
