"""Convolution in C++ (csrc/cpu/winograd*.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

_library.define("conv3x3_pack_(Tensor weight, bool turned, Tensor(a!) packed) -> ()")
_library.define("conv3x3_packed_(Tensor x, Tensor packed, Tensor? bias, Tensor(a!) out) -> ()")
_library.define("conv3x3_weight_gradient_(Tensor x, Tensor grad, Tensor(a!) grad_weight) -> ()")

_POINTS = 36
_COLUMNS = 64  # output channels are padded to a multiple of it
_GAP = 16  # numbers between the points, which keeps them apart in caches
# Bytes of packed weights in one piece; beyond 32 MiB the C library asks the system for new pages each time.
_HELD = 2**24


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, K, H, W]; see ``reference.forward``."""
    return _convolve_once(x, weight, bias, False)


def backward(grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. x, weight and bias; empty where ``needs`` says no."""
    grad = innermost(grad)
    grad_x, grad_weight, grad_bias = (grad.new_empty(0) for _ in range(3))
    if needs[0]:
        grad_x = _convolve_once(grad, weight, None, True)
    if needs[1]:
        grad_weight = torch.empty_like(weight)
        torch.ops.clead.conv3x3_weight_gradient_.default(innermost(x), grad, grad_weight)
    if needs[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias


def room(weight: Tensor, turned: bool) -> Tensor:
    """Uninitialised memory for ``pack``."""
    out, channels = weight.shape[1::-1] if turned else weight.shape[:2]
    return weight.new_empty(-(-out // _COLUMNS) * _POINTS * (_COLUMNS * channels + _GAP))


def pack(weight: Tensor, turned: bool, packed: Tensor) -> None:
    """The weight at the points, or of the convolution that takes gradients by the output to those by the input."""
    torch.ops.clead.conv3x3_pack_.default(weight, turned, packed)
    if not packed.is_inference():  # else a backward pass that kept the old ones would not notice
        torch.autograd.graph.increment_version(packed)


def convolve(x: Tensor, packed: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    """[B, channels, H, W] by a packed weight."""
    x = innermost(x)
    out = _result(x, channels)
    torch.ops.clead.conv3x3_packed_.default(x, packed, None if bias is None else bias.contiguous(), out)
    return out


def innermost(x: Tensor) -> Tensor:
    """x with neighbouring channels next to each other."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _convolve_once(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    """[B, channels, H, W] by a weight that is packed for this call, some output channels after the other."""
    x, (out, channels) = innermost(x), weight.shape[1::-1] if turned else weight.shape[:2]
    result = _result(x, out)
    count = max(1, _HELD // (_POINTS * _COLUMNS * max(channels, 1) * weight.element_size())) * _COLUMNS
    for first in range(0, out, count):
        part = weight.narrow(int(turned), first, min(count, out - first))
        packed = room(part, turned)
        pack(part, turned, packed)
        shift = None if bias is None else bias[first : first + count].contiguous()
        torch.ops.clead.conv3x3_packed_.default(x, packed, shift, result[:, first : first + count])
    return result


def _result(x: Tensor, channels: int) -> Tensor:
    return torch.empty((x.shape[0], channels, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)
