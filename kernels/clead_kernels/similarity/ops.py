"""``torch.ops.clead.similarity``, ``similarity_backward`` and ``similarity_topk``: schemas, fakes, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _library, _rows
from . import native, reference


def _triton(name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        from . import triton  # not at the top: Triton need not be installed

        return getattr(triton, name)(*arguments)

    return call


_FORWARD = {"reference": reference.forward, "native": native.forward, "triton": _triton("forward")}
_BACKWARD = {"reference": reference.backward, "native": native.backward, "triton": _triton("backward")}
_TOPK = {"reference": reference.topk, "native": native.topk, "triton": _triton("topk")}

_ARGUMENTS = "Tensor a, Tensor b, Tensor? temperature_tensor, float temperature, bool normalize, str impl"


def _forward(a: Tensor, b: Tensor, temperature_tensor: Tensor | None, temperature: float, *rest: Any) -> Tensor:
    normalize, impl = rest
    return _FORWARD[impl](a, b, temperature if temperature_tensor is None else temperature_tensor, normalize)


def _forward_fake(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    batch = (a.new_empty(a.shape[:-2]) + b.new_empty(b.shape[:-2])).shape
    return a.new_empty(*batch, a.shape[-2], b.shape[-2])


def _backward(grad: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    temperature_tensor, temperature, normalize, impl, needs = rest
    if temperature_tensor is None:
        return _BACKWARD[impl](grad, a, b, temperature, normalize, needs)
    grad_a, grad_b, grad_temperature = _BACKWARD[impl](grad, a, b, temperature_tensor, normalize, needs)
    return grad_a, grad_b, grad_temperature.to(temperature_tensor)


def _backward_fake(grad: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    temperature_tensor, needs = rest[0], rest[-1]
    no_a, no_b, no_temperature = (a.new_empty(0, dtype=_rows.working_dtype(a.dtype)) for _ in range(3))
    return (
        a.new_empty(a.shape) if needs[0] else no_a,
        b.new_empty(b.shape) if needs[1] else no_b,
        no_temperature if temperature_tensor is None else temperature_tensor.new_empty(() if needs[2] else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, temperature_tensor, *ctx.plain = inputs
    ctx.save_for_backward(a, b, temperature_tensor)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    grads = backward_op(grad, *ctx.saved_tensors, *ctx.plain, needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None)


def _topk(queries: Tensor, bank: Tensor, k: int, normalize: bool, impl: str) -> tuple[Tensor, Tensor]:
    return _TOPK[impl](queries, bank, k, normalize)


def _topk_fake(queries: Tensor, bank: Tensor, k: int, normalize: bool, impl: str) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


backward_op = _library.define_functional(
    f"similarity_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _library.refuse_second_derivative,
)
forward_op = _library.define_functional(
    f"similarity({_ARGUMENTS}) -> Tensor", _forward, _forward_fake, _differentiate, _save
)
topk_op = _library.define_functional(
    "similarity_topk(Tensor queries, Tensor bank, int k, bool normalize, str impl) -> (Tensor, Tensor)",
    _topk,
    _topk_fake,
)
