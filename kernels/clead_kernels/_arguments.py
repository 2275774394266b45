"""Argument checks shared by the front doors: each raises one sentence naming the argument, what was expected, found."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 9.9e-9, 1.01e18  # 1e-8 to 1e18, however rounded
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WHOLE = (int, torch.SymInt, numbers.Integral)  # NumPy's too, by the abstract class
_REAL = (*_WHOLE, float, torch.SymFloat, numbers.Real)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def values_readable(tensor: Tensor) -> bool:
    """Whether values may be looked at: never while compiling, and off the CPU (it waits) only with CLEAD_CHECK=1."""
    if torch.compiler.is_compiling():
        return False
    if tensor.device.type == "cpu":
        return not (isinstance(tensor, FakeTensor) or is_transformed(tensor))
    return tensor.device.type != "meta" and os.environ.get("CLEAD_CHECK") == "1"


def is_transformed(x: Tensor) -> bool:
    """Whether ``x`` stands for another tensor within a transform of ``torch.func``."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_dense(name: str, x: Tensor) -> None:
    """``x`` is neither sparse nor nested nor opaque."""
    if x.is_nested or x.layout is not torch.strided:
        found = "a nested one" if x.is_nested else f"layout {str(x.layout).removeprefix('torch.')}"
        raise TypeError(f"{name} must be a dense tensor, got {found}")


def check_flag(name: str, value: bool) -> None:
    """``value`` is True or False."""
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_rows(name: str, x: Tensor, *, batched: bool = False) -> None:
    """``x`` is a floating-point [rows, d] tensor (``batched``: [..., rows, d])."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    check_dense(name, x)
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {_short(x.dtype)}")
    if x.ndim < 2 or (x.ndim > 2 and not batched):
        expected = "[..., rows, d]" if batched else "[rows, d]"
        raise ValueError(f"{name} must have shape {expected}, got {list(x.shape)}")
    check_no_tangent(name, x)


def check_no_tangent(name: str, x: Tensor) -> None:
    """Forward-mode differentiation passes custom ops by, and would silently return zeros."""
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"{name} carries a forward-mode tangent, clead_kernels has reverse mode only")


def check_alike(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Both have the same last dimension, dtype and device."""
    if x.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{name} and {other_name} must have the same last dimension, got {list(x.shape)} and {list(other.shape)}"
        )
    check_together(name, x, other_name, other)


def check_together(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Both have the same dtype and device."""
    if x.dtype != other.dtype:
        raise TypeError(
            f"{name} and {other_name} must have the same dtype, got {_short(x.dtype)} and {_short(other.dtype)}"
        )
    if x.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on the same device, got {x.device} and {other.device}")


def split_temperature(temperature: float | Tensor, device: torch.device) -> tuple[Tensor | None, float]:
    """A temperature as the ops take it: (0-d tensor or None, float)."""
    tensor, number = split_number("temperature", temperature, device)
    if tensor is None:
        _check_temperature(number)
    elif values_readable(tensor):
        _check_temperature(tensor.item())
    return tensor, number


def split_number(name: str, value: float | Tensor, device: torch.device) -> tuple[Tensor | None, float]:
    """A number that may require grad, as the ops take it: (0-d tensor or None, float)."""
    if isinstance(value, Tensor):
        check_dense(name, value)
        if value.ndim != 0 or not value.is_floating_point():
            found = f"{list(value.shape)} {_short(value.dtype)}"
            raise ValueError(f"{name} must be a float or a 0-d floating-point tensor, got {found}")
        check_scalar_device(name, value, device)
        check_no_tangent(name, value)
        return value, 0.0
    check_real(name, value, "a float or a 0-d tensor")
    return None, float(value)


def check_scalar_device(name: str, value: Tensor, device: torch.device) -> None:
    """A 0-d tensor may be on any device, but that of no device has no value."""
    if value.device.type == "meta" and device.type != "meta":
        raise ValueError(f"{name} must be on {device} like the embeddings, got {value.device}")


def check_real(name: str, value: float, expected: str = "a number") -> None:
    """``value`` is a float, or an integer that one can hold."""
    if isinstance(value, bool) or not isinstance(value, _REAL):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{name} must be in the range of floats, got an integer of {value.bit_length()} bits")


def check_integers(name: str, x: Tensor, lengths: Sequence[int], device: torch.device) -> Tensor:
    """``x`` is an integer vector with one of the allowed lengths, on ``device``; returned as int64."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be an integer tensor, got {type(x).__name__}")
    check_dense(name, x)
    if x.dtype not in _INTEGERS:
        raise TypeError(f"{name} must hold integers, got {_short(x.dtype)}")
    if x.ndim != 1 or x.shape[0] not in lengths:
        raise ValueError(f"{name} must have shape {' or '.join(f'[{n}]' for n in lengths)}, got {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like the embeddings, got {x.device}")
    return x.to(torch.int64)


def check_weights(name: str, x: Tensor, rows: int, device: torch.device) -> Tensor:
    """``x`` is a floating-point vector [rows] on ``device``; returned as a constant."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    check_dense(name, x)
    if not x.is_floating_point() or x.shape != (rows,):
        raise ValueError(f"{name} must be floating-point [{rows}], got {list(x.shape)} {_short(x.dtype)}")
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like the embeddings, got {x.device}")
    return x.detach()


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        found = repr(value) if isinstance(value, str) else type(value).__name__
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {found}")


def check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """``value`` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, _WHOLE):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {expected}, got {value}")


def check_number(name: str, value: float, low: float, below: float = math.inf) -> None:
    """``value`` is a number in [low, below)."""
    check_real(name, value)
    if not low <= value < below:
        raise ValueError(f"{name} must be in [{low:g}, {below:g}), got {value}")


def _check_temperature(value: float) -> None:
    """Beyond this range the logits of a row differ by more, or by less, than logarithms of sums have digits."""
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")
    if not _LEAST_TEMPERATURE < value < _MOST_TEMPERATURE:
        raise ValueError(f"temperature must be in [1e-8, 1e18], got {value}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
