"""Row geometry shared by the reference implementations: working precision, unit rows and the gradient through them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

TINY = 1e-12
"""Rows with a smaller norm are divided by this and get no gradient (``torch.nn.functional.normalize``'s floor)."""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Switches autocast off: inside an op it would round the matrix products behind our back."""
    # Torch 2.11 cannot trace the question.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def unit_rows(x: Tensor) -> Tensor:
    """``x / max(|x|, 1e-12)`` over the last dimension, in the working dtype: float16 does not round the floor to 0."""
    return _unit_rows_and_norms(x.to(working_dtype(x.dtype)))[0]


def working_rows(x: Tensor, normalize: bool) -> Tensor:
    """The rows an op computes with, in the working dtype: ``unit_rows(x)``, or ``x`` itself."""
    return unit_rows(x) if normalize else x.to(working_dtype(x.dtype))


def unit_rows_backward(grad_unit: Tensor, x: Tensor) -> Tensor:
    """The gradient w.r.t. ``x`` from that w.r.t. ``unit_rows(x)``, in the working dtype; 0 where |x| < 1e-12."""
    unit, norm = _unit_rows_and_norms(x.to(grad_unit.dtype))
    radial = (unit * grad_unit).sum(-1, keepdim=True)
    return torch.where(norm < TINY, 0.0, (grad_unit - unit * radial) / norm)


def _unit_rows_and_norms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows [..., d] and norms [..., 1] of float32 or float64 rows, also of those whose squares overflow."""
    limit, factor = (2.0**500, 2.0**-530) if x.dtype == torch.float64 else (2.0**60, 2.0**-80)
    large = torch.linalg.vector_norm(x, 1, dim=-1, keepdim=True) > limit
    x = torch.where(large, x * factor, x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(TINY), torch.where(large, norm / factor, norm)


def working_rows_backward(grad_rows: Tensor, x: Tensor, normalize: bool) -> Tensor:
    """The gradient w.r.t. ``x`` from that w.r.t. ``working_rows(x, normalize)``, contiguous in the dtype of ``x``."""
    grad = unit_rows_backward(grad_rows, x) if normalize else grad_rows
    return grad.to(x.dtype, memory_format=torch.contiguous_format)
