"""The pairwise sigmoid loss: front door, op and reference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import _library, dispatch
from .._rows import full_precision, working_dtype, working_rows, working_rows_backward
from . import call
from .call import Reduction


def sigmoid_loss(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    normalize: bool = True,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """The loss of SigLIP (Zhai et al., arXiv 2303.15343, eq. 2): every pair is classified on its own.

    ``loss_i = -sum_j log sigmoid(z_ij (<a_i, b_j> / temperature + bias))``, z_ij = 1 for j = i, else -1.

    Args:
        a: [M, d], float64, float32, bfloat16 or float16.
        b: [N, d], N >= M; row i belongs to row i of ``a``, further rows to none; same dtype and device.
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        bias: finite float, or a 0-d tensor, which may require grad.
        normalize: divide rows by their norms first (a row with a norm below 1e-12 gets no gradient).
        weights: floating-point [M], constants that multiply the rows' losses; ``"mean"`` still divides by M.
        reduction: ``"mean"`` over all rows (0 for an empty batch), ``"sum"`` or ``"none"`` (one value per row).
        impl: which implementation, see ``explain``.

    Returns:
        0-d loss, or [M] for ``reduction="none"``; float64 for float64 and float32 otherwise.

    Raises:
        ValueError: shapes, devices or values do not fit.
        TypeError: a type or dtype does not fit.
        NotImplementedError: ``impl`` cannot do it.
    """
    arguments.check_rows("a", a)
    arguments.check_rows("b", b)
    arguments.check_alike("a", a, "b", b)
    rows = a.shape[0]
    if b.shape[0] < rows:
        raise ValueError(f"b must have at least as many rows as a ({rows}), got {b.shape[0]}")
    arguments.check_choice("reduction", reduction, ("mean", "sum", "none"))
    if weights is not None:
        weights = arguments.check_weights("weights", weights, rows, a.device)
    chosen = dispatch.resolve("sigmoid_loss", impl, device=a.device, dtype=a.dtype)
    arguments.check_flag("normalize", normalize)
    scale = arguments.split_temperature(temperature, a.device)
    shift = arguments.split_number("bias", bias, a.device)
    if not -math.inf < shift[1] < math.inf:
        raise ValueError(f"bias must be finite, got {bias}")
    loss: Tensor = _forward_op(a, b, *scale, *shift, normalize, chosen)
    return call.reduce(loss if weights is None else loss * weights.to(loss.dtype), loss, reduction)


def _logits(
    a: Tensor,
    b: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    bias_tensor: Tensor | None,
    bias: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """z_ij times the logits [M, N], the rows of both sides and the temperature."""
    rows = [working_rows(x, normalize) for x in (a, b)]
    scale, shift = (
        number if tensor is None else tensor.to(rows[0].device, rows[0].dtype)
        for tensor, number in ((temperature_tensor, temperature), (bias_tensor, bias))
    )
    logits = -(rows[0] @ rows[1].mT / scale + shift)
    logits.diagonal().neg_()
    return logits, rows[0], rows[1], scale


def _forward(
    a: Tensor,
    b: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    bias_tensor: Tensor | None,
    bias: float,
    normalize: bool,
    impl: str,
) -> Tensor:
    if impl == "native":
        loss = a.new_empty(a.shape[0], dtype=working_dtype(a.dtype))
        scale, shift = _numbers(temperature_tensor, temperature, bias_tensor, bias)
        torch.ops.clead.sigmoid_loss_native_.default(a.detach(), b.detach(), scale, shift, normalize, loss)
        return loss
    with full_precision(a.device):
        logits = _logits(a, b, temperature_tensor, temperature, bias_tensor, bias, normalize)[0]
        return torch.logaddexp(-logits, torch.zeros_like(logits)).sum(1)


def _numbers(
    temperature_tensor: Tensor | None, temperature: float, bias_tensor: Tensor | None, bias: float
) -> tuple[float, float]:
    return (
        temperature if temperature_tensor is None else temperature_tensor.item(),
        bias if bias_tensor is None else bias_tensor.item(),
    )


def _forward_fake(a: Tensor, *_: Any) -> Tensor:
    return a.new_empty(a.shape[0], dtype=working_dtype(a.dtype))


def _backward(
    grad_loss: Tensor,
    a: Tensor,
    b: Tensor,
    temperature_tensor: Tensor | None,
    temperature: float,
    bias_tensor: Tensor | None,
    bias: float,
    normalize: bool,
    impl: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if impl == "native":
        numbers = _numbers(temperature_tensor, temperature, bias_tensor, bias)
        return _native_backward(grad_loss, (a, b, temperature_tensor, bias_tensor), numbers, normalize, needs)
    with full_precision(a.device):
        logits, rows, others, scale = _logits(a, b, temperature_tensor, temperature, bias_tensor, bias, normalize)
        grad = torch.sigmoid(-logits) * grad_loss.to(logits.dtype)[:, None]
        grad.diagonal().neg_()
        grads = [rows.new_empty(0) for _ in range(4)]
        if needs[0]:
            grads[0] = working_rows_backward(grad @ others / scale, a, normalize)
        if needs[1]:
            grads[1] = working_rows_backward(grad.mT @ rows / scale, b, normalize)
        if needs[2] and temperature_tensor is not None:
            grads[2] = (-(grad * (rows @ others.mT)).sum() / scale / scale).to(temperature_tensor)
        if needs[3] and bias_tensor is not None:
            grads[3] = grad.sum().to(bias_tensor)
        return grads[0], grads[1], grads[2], grads[3]


def _native_backward(
    grad_loss: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    numbers: tuple[float, float],
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = working_dtype(inputs[0].dtype)
    grads = [
        grad_loss.new_empty(x.shape if need and x is not None else 0, dtype=dtype)
        for x, need in zip(inputs, needs, strict=True)
    ]
    torch.ops.clead.sigmoid_loss_native_backward_.default(
        grad_loss.to(dtype), inputs[0].detach(), inputs[1].detach(), *numbers, normalize, *grads
    )
    a, b, temperature, bias = (g if x is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))
    return a, b, temperature, bias


def _backward_fake(grad_loss: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *inputs, needs = rest
    wanted = [inputs[0], inputs[1], inputs[2], inputs[4]]
    nothing = [grad_loss.new_empty(0) for _ in wanted]
    return tuple(
        x.new_empty(x.shape) if need and x is not None else empty
        for x, need, empty in zip(wanted, needs, nothing, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, temperature_tensor, ctx.temperature, bias_tensor, ctx.bias, ctx.normalize, ctx.impl = inputs
    ctx.save_for_backward(a, b, temperature_tensor, bias_tensor)


def _differentiate(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    a, b, temperature_tensor, bias_tensor = ctx.saved_tensors
    needs = [ctx.needs_input_grad[at] for at in (0, 1, 2, 4)]
    scale, shift = (temperature_tensor, ctx.temperature), (bias_tensor, ctx.bias)
    grads = _backward_op(grad_loss, a, b, *scale, *shift, ctx.normalize, ctx.impl, needs)
    by_a, by_b, by_temperature, by_bias = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return by_a, by_b, by_temperature, None, by_bias, None, None, None


_NATIVE = "Tensor a, Tensor b, float temperature, float bias, bool normalize"
_library.define(f"sigmoid_loss_native_({_NATIVE}, Tensor(a!) loss) -> ()")
_library.define(
    f"sigmoid_loss_native_backward_(Tensor grad_loss, {_NATIVE}, "
    "Tensor(a!) grad_a, Tensor(b!) grad_b, Tensor(c!) grad_temperature, Tensor(d!) grad_bias) -> ()"
)
_ARGUMENTS = (
    "Tensor a, Tensor b, Tensor? temperature_tensor, float temperature, Tensor? bias_tensor, float bias, "
    "bool normalize, str impl"
)
_backward_op = _library.define_functional(
    f"sigmoid_loss_backward(Tensor grad_loss, {_ARGUMENTS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    _library.refuse_second_derivative,
)
_forward_op = _library.define_functional(
    f"sigmoid_loss({_ARGUMENTS}) -> Tensor", _forward, _forward_fake, _differentiate, _save
)
