"""Convolution in eager PyTorch: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._rows import full_precision


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, K, H, W] with the channels innermost."""
    with full_precision(x.device):
        return F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)


def backward(grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. x, weight and bias; empty where ``needs`` says no."""
    grads = differentiable_backward(grad, x, weight, needs)
    formats = (torch.channels_last, torch.preserve_format, torch.preserve_format)
    found = (
        grad.new_empty(0) if part is None else torch.empty_like(like, memory_format=form).copy_(part)
        for part, like, form in zip(grads, (x, weight, weight[:, 0, 0, 0]), formats, strict=True)
    )
    grad_x, grad_weight, grad_bias = found
    return grad_x, grad_weight, grad_bias


def differentiable_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same by an operator that has a derivative itself; None where ``needs`` says no."""
    with full_precision(x.device):
        grads = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, needs
        )
    # Some backends give the weight's gradient along with the bias's.
    by_x, by_weight, by_bias = (part if need else None for part, need in zip(grads, needs, strict=True))
    return by_x, by_weight, by_bias
