"""``torch.ops.clead.conv3x3``, ``conv3x3_backward`` and ``conv3x3_of_packed``: schemas, fakes, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import native, reference

_MODULES: dict[str, Any] = {"reference": reference, "native": native}


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    out: Tensor = _MODULES[impl].forward(x, weight, bias)
    return out


def _fake(x: Tensor, channels: int) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, impl: str, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _MODULES[impl].backward(grad, x, weight, needs)
    return grads


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, impl: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _fake(x, x.shape[1]) if needs[0] else grad.new_empty(0),
        torch.empty_like(weight) if needs[1] else grad.new_empty(0),
        grad.new_empty(weight.shape[0] if needs[2] else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.impl = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (*reference.differentiable_backward(grad, x, weight, needs), None)
    grads = backward_op(grad, x, weight, ctx.impl, needs)
    return (*(part if need else None for part, need in zip(grads, needs, strict=True)), None)


def _of_packed(x: Tensor, packed: Tensor, turned: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    return native.convolve(x, packed, bias, channels)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, turned, _, _ = inputs
    ctx.channels = x.shape[1]
    ctx.save_for_backward(packed, turned)


def _differentiate_packed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, turned = ctx.saved_tensors
    return packed_op(grad, turned, packed, None, ctx.channels), None, None, None, None


backward_op = _library.define_functional(
    "conv3x3_backward(Tensor grad, Tensor x, Tensor weight, str impl, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _library.refuse_second_derivative,
)
conv_op = _library.define_functional(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, str impl) -> Tensor",
    _forward,
    lambda x, weight, bias, impl: _fake(x, weight.shape[0]),
    _differentiate,
    _save,
)
packed_op = _library.define_functional(
    "conv3x3_of_packed(Tensor x, Tensor packed, Tensor turned, Tensor? bias, int channels) -> Tensor",
    _of_packed,
    lambda x, packed, turned, bias, channels: _fake(x, channels),
    _differentiate_packed,
    _save_packed,
)
