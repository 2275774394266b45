"""The margin by which an instance is confused with another one: front door, op and reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import _library, _trial, dispatch
from .._rows import full_precision, working_dtype, working_rows, working_rows_backward
from . import call

_CHUNK = 1 << 22  # similarities held together


def instance_margin(
    anchors: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    positives: Tensor | None = None,
    normalize: bool = True,
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """The margin of Carlini and Wagner (arXiv 1608.04644, f_6) with instances as classes, for every row.

    ``margin_i = max_{j != p} s_ij - s_ip``, ``s_ij = <anchor_i, candidate_j> / temperature``: positive where another
    candidate is closer than the positive one. The gradient is that of the largest j.

    Args:
        anchors: [M, d], float64, float32, bfloat16 or float16.
        candidates: [N, d], same dtype and device.
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        positives: int64 [M], the candidate that is positive for each anchor, -1 = none; None = candidate i for anchor
            i, which needs N >= M. Rows without a positive or without another candidate are 0.
        normalize: divide rows by their norms first (a row with a norm below 1e-12 gets no gradient).
        impl: which implementation, see ``explain``.

    Returns:
        [M], float64 for float64 and float32 otherwise.

    Raises:
        ValueError: shapes, devices or values do not fit.
        TypeError: a type or dtype does not fit.
        NotImplementedError: ``impl`` cannot do it.
    """
    arguments.check_rows("anchors", anchors)
    arguments.check_rows("candidates", candidates)
    arguments.check_alike("anchors", anchors, "candidates", candidates)
    rows, columns = anchors.shape[0], candidates.shape[0]
    if positives is not None:
        positives = call.check_index("positives", positives, rows, columns, anchors.device)
    elif columns < rows:
        raise ValueError(f"candidates must have at least as many rows as anchors ({rows}), got {columns}")
    else:
        positives = torch.arange(rows, device=anchors.device)
    features = {"width": "up to 512" if anchors.shape[1] <= 512 else "above 512"}
    row = dispatch.find("instance_margin", impl, device=anchors.device, dtype=anchors.dtype, **features)
    arguments.check_flag("normalize", normalize)
    scale = arguments.split_temperature(temperature, anchors.device)
    chosen = row.impl
    if row.on_trial and impl == "auto":
        chosen = _tried(row, anchors, candidates, normalize, positives)
    margin: Tensor = _forward_op(anchors, candidates, *scale, normalize, positives, chosen)[0]
    return margin


def _tried(row: dispatch.Support, anchors: Tensor, candidates: Tensor, normalize: bool, positives: Tensor) -> str:
    """What runs a call that ``row``, which is on trial, would run."""

    def run(impl: str, a: Tensor, b: Tensor) -> Tensor:
        """Margins, and what they are differences of; gradients are the same code, and those of ties are not."""
        a, b = a.detach(), b.detach()
        usual = torch.linalg.vector_norm(working_rows(b, normalize)) / max(1, len(b)) ** 0.5
        lengths = usual * torch.linalg.vector_norm(working_rows(a, normalize), dim=1)
        return torch.stack([_forward_op(a, b, None, 1.0, normalize, positives, impl)[0], lengths], 1)

    sizes = _trial.size(anchors.shape[0]), _trial.size(candidates.shape[0]), _trial.width(anchors.shape[1])
    return _trial.choose(row.op, row.impl, (normalize, *sizes), run, anchors, candidates)


def _temperature(temperature_tensor: Tensor | None, temperature: float, like: Tensor) -> Tensor | float:
    return temperature if temperature_tensor is None else temperature_tensor.to(like.device, like.dtype)


def _forward(
    anchors: Tensor,
    candidates: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    positives: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Margins [M] and the most similar other candidates, int64 [M], -1 = none."""
    rows, columns = anchors.shape[0], candidates.shape[0]
    with full_precision(anchors.device):
        a, b = working_rows(anchors, normalize), working_rows(candidates, normalize)
        hardest = torch.full_like(positives, -1)
        if columns < 2:
            return a.new_zeros(rows), hardest
        known = (positives >= 0) & (positives < columns)
        index = torch.where(known, positives, 0)
        if impl == "native":
            torch.ops.clead.instance_margin_native_.default(anchors, candidates, normalize, index, hardest)
        elif impl == "triton":
            from .triton_search import find_hardest  # not at the top: Triton need not be installed

            find_hardest(anchors, candidates, normalize, index, hardest)
        else:
            _find_hardest(a, b, index, hardest)
        hardest.clamp_(min=0)  # only NaN is no largest similarity
        margin = (a * (b[hardest] - b[index])).sum(1) / _temperature(temperature_tensor, temperature, a)
        return torch.where(known, margin, 0.0), torch.where(known, hardest, -1)


def _find_hardest(a: Tensor, b: Tensor, positives: Tensor, hardest: Tensor) -> None:
    """Fills ``hardest`` [M]: chunks of rows, never all pairs."""
    step = max(1, _CHUNK // b.shape[0])
    for start in range(0, a.shape[0], step):
        part = slice(start, start + step)
        hardest[part] = (a[part] @ b.mT).scatter_(1, positives[part, None], -torch.inf).argmax(1)


def _forward_fake(
    anchors: Tensor,
    candidates: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    positives: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor]:
    return anchors.new_empty(anchors.shape[0], dtype=working_dtype(anchors.dtype)), torch.empty_like(positives)


def _backward(
    grad_margin: Tensor,
    margin: Tensor,
    hardest: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    positives: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(anchors.device):
        a, b = working_rows(anchors, normalize), working_rows(candidates, normalize)
        scale = _temperature(temperature_tensor, temperature, a)
        grads = [a.new_empty(0) for _ in range(3)]
        weight = torch.where(hardest >= 0, grad_margin.to(a.dtype) / scale, 0.0)[:, None]
        index, other = torch.where(hardest[:, None] >= 0, torch.stack([positives, hardest], 1), 0).unbind(1)
        if needs[0]:
            toward = b[other] - b[index] if len(b) else torch.zeros_like(a)
            grads[0] = working_rows_backward(weight * toward, anchors, normalize)
        if needs[1]:
            pull = weight * a if len(b) else a[:0]
            grad = torch.zeros_like(b).index_add(0, other[: len(pull)], pull).index_add(0, index[: len(pull)], -pull)
            grads[1] = working_rows_backward(grad, candidates, normalize)
        if needs[2] and temperature_tensor is not None:
            grads[2] = (-(grad_margin * margin).sum() / scale).to(temperature_tensor)
        return grads[0], grads[1], grads[2]


def _backward_fake(
    grad_margin: Tensor,
    margin: Tensor,
    hardest: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    positives: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = [margin.new_empty(0) for _ in range(3)]
    return (
        anchors.new_empty(anchors.shape) if needs[0] else nothing[0],
        candidates.new_empty(candidates.shape) if needs[1] else nothing[1],
        temperature_tensor.new_empty(()) if needs[2] and temperature_tensor is not None else nothing[2],
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    anchors, candidates, temperature_tensor, ctx.temperature, ctx.normalize, positives, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, anchors, candidates, temperature_tensor, positives)


def _differentiate(ctx: Any, grad_margin: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *saved, positives = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
    grads = _backward_op(grad_margin, *saved, ctx.temperature, ctx.normalize, positives, needs)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None, None)


_library.define(
    "instance_margin_native_(Tensor anchors, Tensor candidates, bool normalize, Tensor positives, Tensor(a!) hardest)"
    " -> ()"
)
_ARGUMENTS = "Tensor anchors, Tensor candidates, Tensor? temperature_tensor, float temperature, bool normalize"
_backward_op = _library.define_functional(
    f"instance_margin_backward(Tensor grad_margin, Tensor margin, Tensor hardest, {_ARGUMENTS}, Tensor positives, "
    "bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _library.refuse_second_derivative,
)
_forward_op = _library.define_functional(
    f"instance_margin({_ARGUMENTS}, Tensor positives, str impl) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _differentiate,
    _save,
)
