"""A scale of logits as the temperature the operators take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _arguments as arguments


def temperature_of(name: str, scale: float | Tensor) -> float | Tensor:
    """``1 / scale``, in float32 or float64; a tensor of one element may require grad.

    Raises:
        TypeError: ``scale`` is neither a number nor a tensor.
        ValueError: ``scale`` has several elements, or is not positive and finite.
    """
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise ValueError(f"{name} must be a float or a tensor of one element, got {list(scale.shape)}")
        scale = scale.reshape(())
        if arguments.values_readable(scale):
            _check_positive(name, scale.item())
        # The reciprocal of a bfloat16 scale of 100 would be off by up to 0.4%.
        return 1 / scale.to(torch.promote_types(scale.dtype, torch.float32))
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{name} must be a float or a tensor, got {type(scale).__name__}")
    _check_positive(name, scale)
    return 1 / scale


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
