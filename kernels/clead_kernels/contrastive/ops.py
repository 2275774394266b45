"""``torch.ops.clead.contrastive`` and ``contrastive_backward``: schemas, fakes, autograd.

One pair of ops serves the whole family: ``Pairs`` and ``Form`` say which loss it is. Reductions happen
outside, on the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _library, _rows
from . import form, native, pairs, reference


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton  # not at the top: Triton need not be installed

    return triton.forward(*arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton

    return triton.backward(*arguments)


_FORWARD: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "reference": reference.forward,
    "native": native.forward,
    "triton": _triton_forward,
}
_BACKWARD: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "reference": reference.backward,
    "native": native.backward,
    "triton": _triton_backward,
}
# n and p of the reference come first; an implementation may keep more for its own backward.
_STATISTICS = {"reference": 2, "native": native.STATISTICS, "triton": 13}

_ARGUMENTS = (
    "Tensor anchors, Tensor? candidates, Tensor? temperature_tensor, float temperature, bool normalize, str impl, "
    + f"{pairs.SCHEMA}, {form.SCHEMA}"
)


def _rules(values: Sequence[Any]) -> tuple[pairs.Pairs, form.Form]:
    count = len(pairs.Pairs._fields)
    return pairs.Pairs(*values[:count]), form.Form(*values[count:])


def _forward(
    anchors: Tensor,
    candidates: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    impl: str,
    *rules: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = temperature if temperature_tensor is None else temperature_tensor
    return _FORWARD[impl](anchors, candidates, scale, normalize, *_rules(rules))


def _forward_fake(
    anchors: Tensor,
    candidates: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    impl: str,
    *rules: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    losses, dtype = _rules(rules)[0].losses(anchors.shape[0]), _rows.working_dtype(anchors.dtype)
    return (
        anchors.new_empty(losses, dtype=dtype),
        anchors.new_empty(losses, dtype=torch.int64),
        anchors.new_empty((_STATISTICS[impl], losses), dtype=dtype),
    )


def _backward(
    grad_loss: Tensor,
    statistics: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    impl: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *rules, needs = rest
    scale = temperature if temperature_tensor is None else temperature_tensor
    grad_anchors, grad_candidates, grad_temperature = _BACKWARD[impl](
        grad_loss, statistics, anchors, candidates, scale, normalize, *_rules(rules), needs
    )
    if temperature_tensor is not None:
        grad_temperature = grad_temperature.to(temperature_tensor)
    return grad_anchors, grad_candidates, grad_temperature


def _backward_fake(
    grad_loss: Tensor,
    statistics: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature_tensor: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = rest[-1]
    nothing = [statistics.new_empty(0) for _ in range(3)]
    return (
        anchors.new_empty(anchors.shape) if needs[0] else nothing[0],
        candidates.new_empty(candidates.shape) if candidates is not None and needs[1] else nothing[1],
        nothing[2] if temperature_tensor is None else temperature_tensor.new_empty(() if needs[2] else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, num_positives, statistics = output
    ctx.set_materialize_grads(False)  # else the other two would get gradients of zeros
    ctx.mark_non_differentiable(num_positives, statistics)
    ctx.save_for_backward(statistics, *(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]


def _differentiate(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return tuple(None for _ in ctx.plain)
    statistics, *tensors = ctx.saved_tensors
    inputs = [plain if tensor is None else tensor for tensor, plain in zip(tensors, ctx.plain, strict=True)]
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
    grads = backward_op(grad_loss, statistics, *inputs, needs)
    wanted = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return (*wanted, *(None for _ in inputs[3:]))


backward_op = _library.define_functional(
    f"contrastive_backward(Tensor grad_loss, Tensor statistics, {_ARGUMENTS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _library.refuse_second_derivative,
)
forward_op = _library.define_functional(
    f"contrastive({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _forward, _forward_fake, _differentiate, _save
)
