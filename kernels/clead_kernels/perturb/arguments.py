"""Argument checks of the perturbation operators: each raises one sentence naming the argument, expected and found."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .._arguments import check_dense, is_transformed, values_readable
from .reference import pixels

Norm = Literal["linf", "l2", "l1"]
Bounds = tuple[float, float] | None

# Others, such as NumPy's, are known by their methods, which a compiled call cannot look for.
_INTEGERS = (int, torch.SymInt)
_NUMBERS = (*_INTEGERS, float, torch.SymFloat)


def check_images(op: str, x_adv: Tensor, **others: Tensor) -> None:
    """``x_adv`` [B, ...] can be written, and ``others`` fit it and lie elsewhere."""
    if not isinstance(x_adv, Tensor):
        raise TypeError(f"x_adv must be a tensor, got {type(x_adv).__name__}")
    _check_own("x_adv", x_adv, op)
    if x_adv.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"x_adv requires grad, and {op} writes it without a gradient: call it under torch.no_grad() or pass "
            "x_adv.detach()"
        )
    if not x_adv.is_floating_point() or x_adv.dim() == 0:
        raise ValueError(f"x_adv must be a float tensor [B, ...], got {x_adv.dtype} {tuple(x_adv.shape)}")
    _check_distinct("x_adv", x_adv)
    for name, other in others.items():
        if not isinstance(other, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(other).__name__}")
        _check_own(name, other, op)
        if other.shape != x_adv.shape:
            raise ValueError(f"{name} must have the shape of x_adv, {tuple(x_adv.shape)}, got {tuple(other.shape)}")
        alike = other.dtype == x_adv.dtype or (name == "x" and other.dtype == torch.uint8)
        if not alike or other.device != x_adv.device:
            raise ValueError(
                f"{name} must have the dtype and device of x_adv, {x_adv.dtype} on {x_adv.device}"
                f"{' (or be torch.uint8)' if name == 'x' else ''}, got {other.dtype} on {other.device}"
            )
        if not torch.compiler.is_compiling() and _share_memory(x_adv, other):
            raise ValueError(f"x_adv shares memory with {name}, which would be overwritten: pass a copy")


def check_buffer(buffer: Tensor, momentum: float, x_adv: Tensor, grad: Tensor, x: Tensor) -> None:
    """The momentum buffer can be written and fits the images; ``momentum`` is a decay."""
    if not isinstance(buffer, Tensor):
        raise TypeError(f"momentum_buffer must be a tensor, got {type(buffer).__name__}")
    _check_own("momentum_buffer", buffer, "pgd_step_")
    if (buffer.shape, buffer.dtype, buffer.device) != (x_adv.shape, x_adv.dtype, x_adv.device):
        raise ValueError(
            f"momentum_buffer must be {x_adv.dtype} {list(x_adv.shape)} on {x_adv.device} like x_adv, "
            f"got {buffer.dtype} {list(buffer.shape)} on {buffer.device}"
        )
    _check_number("momentum", momentum)
    if not 0 <= momentum < math.inf:
        raise ValueError(f"momentum must be a finite number >= 0, got {momentum}")
    if buffer.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "momentum_buffer requires grad, and pgd_step_ writes it without a gradient: pass a detached one"
        )
    _check_distinct("momentum_buffer", buffer)
    for name, other in (("x_adv", x_adv), ("grad", grad), ("x", x)):
        if not torch.compiler.is_compiling() and _share_memory(buffer, other):
            raise ValueError(f"momentum_buffer shares memory with {name}: pass a tensor of its own")


def sparsity(value: float | Tensor, x: Tensor, dtype: torch.dtype) -> tuple[float, Tensor | None]:
    """``l1_sparsity`` as the two arguments of an op, like ``radius``."""
    if not isinstance(value, Tensor):
        _check_number("l1_sparsity", value)
        if not 0 < value <= 1:
            raise ValueError(f"l1_sparsity must be in (0, 1], got {value}")
        return float(value), None
    tensor = _radius_tensor("l1_sparsity", value, x, dtype, "l1")
    if values_readable(tensor) and not bool(((tensor > 0) & (tensor <= 1)).all()):
        raise ValueError(
            f"l1_sparsity must be in (0, 1] everywhere, got {tensor.min().item()} to {tensor.max().item()}"
        )
    return 0.0, tensor


def radius(name: str, value: float | Tensor, x: Tensor, dtype: torch.dtype, norm: str) -> tuple[float, Tensor | None]:
    """``value`` as the two arguments of an op: a float, and the tensor that replaces it or None."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be 'linf', 'l2' or 'l1', got {norm!r}")
    if not isinstance(value, Tensor):
        _check_number(name, value)
        # Infinity is a radius (no ball) but not a length: 0 · inf is NaN.
        if not value >= 0 or (name == "step_size" and not value < math.inf):
            raise ValueError(f"{name} must be a number >= 0, got {value}")
        return float(value), None
    return 0.0, _radius_tensor(name, value, x, dtype, norm)


def limits(bounds: Bounds) -> tuple[float, float]:
    """``bounds`` as two floats, infinite for None."""
    if bounds is None:
        return -math.inf, math.inf
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high) or None, got {bounds!r}")
    for number in bounds:
        _check_number("bounds", number)
    low, high = bounds
    if not low <= high:
        raise ValueError(f"bounds must be (low, high) with low <= high, got ({low}, {high})")
    return float(low), float(high)


def check_ids(sample_ids: Tensor | None, x: Tensor) -> None:
    """``sample_ids`` is int64 [B], or None."""
    if sample_ids is None:
        return
    if not isinstance(sample_ids, Tensor):
        raise TypeError(f"sample_ids must be an int64 tensor or None, got {type(sample_ids).__name__}")
    check_dense("sample_ids", sample_ids)
    if sample_ids.dtype != torch.int64 or sample_ids.shape != x.shape[:1] or sample_ids.device != x.device:
        raise ValueError(
            f"sample_ids must be int64 [{len(x)}] on {x.device}, got {sample_ids.dtype} "
            f"{list(sample_ids.shape)} on {sample_ids.device}"
        )


def check_whole(name: str, value: Any, bits: int) -> None:
    """``value`` is an integer in [0, 2**bits)."""
    if isinstance(value, (bool, Tensor)) or not (isinstance(value, _INTEGERS) or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name} must be in [0, 2**{bits}), got {value}")


def clean(x: Tensor, x_adv: Tensor) -> Tensor:
    """x as an op takes it: the GPU kernels read no bytes."""
    return x if x.device.type == "cpu" else pixels(x, x_adv.dtype)


def _check_own(name: str, x: Tensor, op: str) -> None:
    check_dense(name, x)
    if is_transformed(x):
        raise NotImplementedError(f"{name} is inside a transform of torch.func, which cannot follow {op} in place")


def _check_distinct(name: str, x: Tensor) -> None:
    """No two elements share memory. Only views made by ``as_strided`` can be refused without need."""
    if x.is_contiguous():
        return
    dimensions = [(step, n) for n, step in zip(x.shape, x.stride(), strict=True) if n > 1]
    reach = 0
    for step, n in dimensions if torch.compiler.is_compiling() else sorted(dimensions):
        if step == 0 or (step <= reach and not torch.compiler.is_compiling()):
            raise ValueError(f"{name} is an expanded view whose elements share memory: pass {name}.contiguous()")
        reach += (n - 1) * step


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, (bool, Tensor)) or not (isinstance(value, _NUMBERS) or hasattr(value, "__float__")):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two real tensors overlap."""
    if a is b:
        return True
    if a.numel() == 0 or a.device.type == "meta" or isinstance(a, FakeTensor):
        return False
    gap = b.data_ptr() - a.data_ptr()
    return gap < _reach(a) if gap >= 0 else -gap < _reach(b)


def _reach(x: Tensor) -> int:
    """Bytes from the first element of ``x`` to the end of its last."""
    if x.is_contiguous():
        return x.nbytes
    return (1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def _radius_tensor(name: str, value: Tensor, x: Tensor, dtype: torch.dtype, norm: str) -> Tensor:
    if value.device != x.device or not value.is_floating_point():
        raise ValueError(f"{name} must be a float tensor on {x.device}, got {value.dtype} on {value.device}")
    check_dense(name, value)
    shape, full = tuple(value.shape), tuple(x.shape)
    if value.dim() == 1:
        shape += (1,) * (x.dim() - 1)  # one number per sample
    else:
        shape = (1,) * (x.dim() - len(shape)) + shape
    outer = () if norm == "linf" else shape[1:]
    fits = len(shape) == x.dim() and all(a in (1, b) for a, b in zip(shape, full, strict=True))
    if not fits or any(size != 1 for size in outer):
        wanted = "[B] or broadcastable to x" if norm == "linf" else "[B] or [B,1,...]"
        raise ValueError(f"{name} must be {wanted} for x of shape {full}, got {tuple(value.shape)}")
    if values_readable(value):
        wrong = value[~(value >= 0) | ((value == math.inf) if name == "step_size" else False)]
        if wrong.numel():
            raise ValueError(f"{name} must be >= 0 everywhere, found {wrong[0].item()}")
    return value.detach().reshape(shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
