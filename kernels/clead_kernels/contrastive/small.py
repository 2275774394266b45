"""``torch.ops.clead.contrastive_small``: calls of few rows on Triton, with their reduction; see ``triton_small``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import pairs as rules
from .form import Form
from .pairs import Pairs

MAX_ROWS = 4096
"""Largest number of anchors and of candidates: beyond, launches and Python are a small part of the time."""
MAX_WIDTH = 256
"""Largest number of dimensions: programs keep whole rows."""

PROGRAMS = 256
"""Largest number of programs of the forward: ``statistics`` begins with the sum of each, and how many rows of it have a
positive."""
SHARE = 2 * PROGRAMS
"""Then comes the factor of the reduction "mean_valid"."""
ROWS = SHARE + 16
"""Then six values of every anchor, [6, M]: d loss / d e of a negative and of one of several positives, what lessens the
gradient of a positive, the offset of e, sum_j d loss / d s_ij * (dot_ij - mean), the inverse norm; weights included.
And six of every candidate, of which only the norm is used where it is no anchor."""

_PLAIN = Form()
_ARGUMENTS = (
    "Tensor anchors, Tensor? candidates, Tensor? temperature_tensor, float temperature, bool normalize, "
    f"str reduction, bool sum_positives, Tensor? weights, bool mirrored, {rules.SCHEMA}"
)


def statistics_size(rows: int, columns: int) -> int:
    """Numbers in ``statistics``."""
    return ROWS + 6 * (rows + columns)


def serves(anchors: Tensor, candidates: Tensor | None, temperature: Tensor | None, pairs: Pairs, form: Form) -> bool:
    """Whether a call that Triton can run is one for these kernels."""
    others = anchors if candidates is None else candidates
    clusters = pairs.clusters
    return (
        0 < anchors.shape[0] <= MAX_ROWS
        and others.shape[0] <= MAX_ROWS
        and anchors.shape[1] <= MAX_WIDTH
        and form == _PLAIN
        and pairs.topk == 0
        and pairs.self_index is None
        and pairs.self_offset <= 0
        and pairs.positive_offset <= 0
        and (candidates is not None or pairs.images > 0 or pairs.groups is not None)
        and (clusters is None or clusters.ndim == 1)
        and (candidates is not None or clusters is pairs.candidate_clusters)
        and (temperature is None or temperature.device == anchors.device)
    )


def loss(
    anchors: Tensor,
    candidates: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    reduction: str,
    sum_positives: bool,
    weights: Tensor | None,
    mirrored: bool,
    pairs: Pairs,
) -> Tensor:
    """The loss of a call that ``serves`` admits: [M] for the reduction "none", else 0-d.

    ``mirrored``: the mean of the reduced loss and of that of the candidates as anchors, for equally many of both.
    """
    options = (normalize, reduction, sum_positives, weights, mirrored)
    if _library.watched(anchors, candidates):  # to be seen costs more than the launches
        result: Tensor = forward_op(anchors, candidates, temperature_tensor, temperature, *options, *pairs)[0]
        return result
    from . import triton_small  # not at the top: Triton need not be installed

    call = triton_small.prepare(anchors, candidates, temperature_tensor, temperature, *options, pairs)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(anchors, candidates, temperature_tensor):
        result = _Small.apply(anchors, candidates, temperature_tensor, call)  # type: ignore[no-untyped-call]
        return result
    return triton_small.forward(call)[0]


class _Small(torch.autograd.Function):
    """The op without its dispatch: the same kernels."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor | None, temperature: Tensor | None, call: Any) -> Tensor:
        from . import triton_small

        loss, statistics = triton_small.forward(call)
        ctx.save_for_backward(statistics, *call.tensors)
        ctx.numbers, ctx.plan = call.numbers, call.plan
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return (*_SmallGradient.apply(grad_loss, ctx, *ctx.saved_tensors[1:4]), None)  # type: ignore[no-untyped-call]
        return (*_gradient(ctx, grad_loss), None)


class _SmallGradient(torch.autograd.Function):
    """The backward under ``create_graph=True``, which must not look like a constant."""

    @staticmethod
    def forward(ctx: Any, grad_loss: Tensor, of_loss: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        return _gradient(of_loss, grad_loss)

    backward = staticmethod(_library.refuse_second_derivative)


def _gradient(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    from . import triton_small

    statistics, *tensors = ctx.saved_tensors
    call = triton_small.Call(tuple(tensors), ctx.numbers, ctx.plan)
    return triton_small.backward(call, grad_loss, statistics, ctx.needs_input_grad[:3])


def _prepare(arguments: tuple[Any, ...]) -> Any:
    from . import triton_small  # not at the top: Triton need not be installed

    count = len(Pairs._fields)
    values: tuple[Any, ...] = (*arguments[:-count], Pairs(*arguments[-count:]))
    return triton_small.prepare(*values)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from . import triton_small

    return triton_small.forward(_prepare(arguments))


def _forward_fake(
    anchors: Tensor,
    candidates: Tensor | None,
    tensor: Tensor | None,
    number: float,
    normalize: bool,
    reduction: str,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    rows, columns = anchors.shape[0], (anchors if candidates is None else candidates).shape[0]
    loss = anchors.new_empty(rows if reduction == "none" else (), dtype=torch.float32)
    return loss, anchors.new_empty(statistics_size(rows, columns), dtype=torch.float32)


def _backward(grad_loss: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_small

    *arguments, needs = rest
    grads = triton_small.backward(_prepare(tuple(arguments)), grad_loss, statistics, tuple(needs))
    return tuple(statistics.new_empty(0) if grad is None else grad for grad in grads)  # type: ignore[return-value]


def _backward_fake(
    grad_loss: Tensor,
    statistics: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (anchors, candidates, temperature)
    return tuple(  # type: ignore[return-value]
        x.new_empty(x.shape) if x is not None and need else statistics.new_empty(0)
        for x, need in zip(inputs, rest[-1], strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # else statistics would get a gradient of zeros
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]


def _differentiate(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return tuple(None for _ in ctx.plain)
    statistics, *tensors = ctx.saved_tensors
    inputs = [plain if tensor is None else tensor for tensor, plain in zip(tensors, ctx.plain, strict=True)]
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
    grads = backward_op(grad_loss, statistics, *inputs, needs)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None for _ in inputs[3:]))


backward_op = _library.define_functional(
    f"contrastive_small_backward(Tensor grad_loss, Tensor statistics, {_ARGUMENTS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _library.refuse_second_derivative,
)
forward_op = _library.define_functional(
    f"contrastive_small({_ARGUMENTS}) -> (Tensor, Tensor)", _forward, _forward_fake, _differentiate, _save
)
