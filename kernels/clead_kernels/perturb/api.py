"""The public perturbation operators: arguments checked, implementation chosen, one registered op called."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .._arguments import values_readable
from ..dispatch import Impl, resolve
from . import ops
from .reference import pixels

Norm = Literal["linf", "l2", "l1"]
Bounds = tuple[float, float] | None


def pgd_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
    targeted: bool = False,
    l1_sparsity: float | Tensor = 0.01,
    momentum_buffer: Tensor | None = None,
    momentum: float = 1.0,
    impl: Impl = "auto",
) -> Tensor:
    """One step of projected gradient ascent, in place (Madry et al., arXiv:1706.06083).

    linf: ``x_adv ← clip(x_adv + step_size · sign(grad), x - eps, x + eps)``; l2: ``grad`` is normalised per sample
    and x_adv is pulled straight back onto the ball. Then x_adv is clamped to ``bounds``. l1: the step goes along
    sign(grad) on the coordinates of largest |grad| that the bounds leave free (Tramèr and Boneh, arXiv:1904.13000),
    and x_adv to the nearest point of ball and bounds together (Croce and Hein, arXiv:2103.01208).

    Elements (linf, l1) or samples (l2) whose gradient is 0, NaN or (l2) infinite do not move. x - eps ≤ x_adv ≤ x + eps
    holds bitwise in float32; l2 and l1 distances hold to 1e-6 relative. bfloat16 and float16 are computed in float32
    (l2, l1: float64) and rounded towards x, so the stored image satisfies both constraints; steps shorter than the
    spacing of the dtype are lost there. x should be inside ``bounds``; where it is not, the bounds win.

    Args:
        x_adv: [B, ...] float64, float32, bfloat16 or float16, any strides; overwritten.
        grad: gradient of the loss at x_adv; shape, dtype and device of x_adv.
        x: clean images, the same shape and device; of the dtype of x_adv, or uint8, which stands for byte/255 in that
            dtype. Must not share memory with x_adv.
        eps: radius ≥ 0 in units of x; a float, a [B] tensor (per sample) or a tensor broadcastable to x such as
            [B,1,1,1] or, for linf, [1,C,1,1]. eps = 0 gives x.
        step_size: length ≥ 0 of the step in the norm, given like ``eps``.
        norm: "linf", "l2" or "l1".
        bounds: (low, high) of valid images, or None for no clamping.
        targeted: descend instead of ascend.
        l1_sparsity: for l1, the part in (0, 1] of the d coordinates of a sample that move: round(l1_sparsity · d), at
            least one, and all that tie with the last; a float or a [B] tensor (APGD-l1 adapts it per sample).
        momentum_buffer: shape, dtype and device of x_adv, zeros before the first step; overwritten by
            ``momentum · momentum_buffer + grad / ‖grad‖₁`` (per sample, rounded towards 0), which then takes the place
            of ``grad`` (MI-FGSM, Dong et al., arXiv:1710.06081, eq. 6).
        momentum: decay ≥ 0 of the buffer; without a buffer it has no effect.
        impl: which implementation; see ``clead_kernels.explain``.

    Returns:
        x_adv itself. No gradient flows through the step.

    Raises:
        ValueError: shapes, dtypes, devices or values that do not fit; x_adv requires grad or shares memory.
        NotImplementedError: ``impl`` cannot run this call.
    """
    _check_images("pgd_step_", x_adv, grad=grad, x=x)
    radius, radius_tensor = _radius("eps", eps, x, x_adv.dtype, norm)
    length, length_tensor = _radius("step_size", step_size, x, x_adv.dtype, norm)
    low, high = _limits(bounds)
    taken = resolve("pgd_step_", impl, device=x.device, dtype=x_adv.dtype, norm=norm)
    x = _clean(x, x_adv)
    if norm == "l1":
        part, part_tensor = _sparsity(l1_sparsity, x, x_adv.dtype)
    if momentum_buffer is not None:
        _check_buffer(momentum_buffer, momentum, x_adv, grad, x)
        ops.MOMENTUM[taken](momentum_buffer, grad, float(momentum))
        grad = momentum_buffer
    op = ops.PGD_STEP[norm][taken]
    if norm == "l1":
        tensors = (radius_tensor, length_tensor, part_tensor)
        op(x_adv, grad, x, radius, length, part, *tensors, low, high, targeted)
    else:
        op(x_adv, grad, x, radius, length, radius_tensor, length_tensor, low, high, targeted)
    return x_adv


def random_start_(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    seed: int,
    sample_ids: Tensor | None = None,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
    step: int = 0,
    impl: Impl = "auto",
) -> Tensor:
    """Overwrite x_adv with a uniform point of the ball around x, clamped to ``bounds``.

    The point is a function of (seed, step, sample id, x, eps) alone: it does not depend on the batch a sample is in,
    on its position there, or on the implementation. ``reference.py`` states the arithmetic to the bit.

    Args:
        x_adv: [B, ...], overwritten; what it held does not matter.
        x: clean images, the same shape and device, of the same dtype or uint8; must not share memory with x_adv.
        eps: radius, as in ``pgd_step_``.
        seed: 64-bit key of the random stream, in [0, 2**64).
        sample_ids: int64 [B] on the device of x, low 32 bits the sample and high 32 bits the view; None = 0 … B-1.
        norm: "linf", "l2" or "l1".
        bounds: as in ``pgd_step_``.
        step: training step, epoch or restart, in [0, 2**32).
        impl: which implementation; see ``clead_kernels.explain``.

    Returns:
        x_adv itself.

    Raises:
        ValueError: as ``pgd_step_``, or ``seed``, ``step`` or ``sample_ids`` do not fit.
        NotImplementedError: as ``pgd_step_``.
    """
    _check_images("random_start_", x_adv, x=x)
    _check_ids(sample_ids, x)
    radius, radius_tensor = _radius("eps", eps, x, x_adv.dtype, norm)
    low, high = _limits(bounds)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    if not 0 <= step < 2**32:
        raise ValueError(f"step must be in [0, 2**32), got {step}")
    # The dispatcher's integers are signed; Philox only looks at the bits.
    key = seed - 2**64 if seed >= 2**63 else seed
    op = ops.RANDOM_START[norm][resolve("random_start_", impl, device=x.device, dtype=x_adv.dtype, norm=norm)]
    op(x_adv, _clean(x, x_adv), radius, radius_tensor, key, sample_ids, step, low, high)
    return x_adv


def project_(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
    impl: Impl = "auto",
) -> Tensor:
    """Pull x_adv, in place, onto the ball of radius ``eps`` around x and into ``bounds``.

    linf and l1 give the nearest point of ball and bounds together; l2 pulls straight towards x and clamps.

    Args:
        x_adv: [B, ...], overwritten.
        x: clean images, the same shape and device, of the same dtype or uint8; must not share memory with x_adv.
        eps: radius, as in ``pgd_step_``.
        norm: "linf", "l2" or "l1".
        bounds: as in ``pgd_step_``.
        impl: which implementation; see ``clead_kernels.explain``.

    Returns:
        x_adv itself.

    Raises:
        ValueError: as ``pgd_step_``.
        NotImplementedError: as ``pgd_step_``.
    """
    _check_images("project_", x_adv, x=x)
    radius, radius_tensor = _radius("eps", eps, x, x_adv.dtype, norm)
    low, high = _limits(bounds)
    op = ops.PROJECT[norm][resolve("project_", impl, device=x.device, dtype=x_adv.dtype, norm=norm)]
    op(x_adv, _clean(x, x_adv), radius, radius_tensor, low, high)
    return x_adv


def _check_images(op: str, x_adv: Tensor, **others: Tensor) -> None:
    if x_adv.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"x_adv requires grad, and {op} writes it without a gradient: call it under torch.no_grad() or pass "
            "x_adv.detach()"
        )
    if not x_adv.is_floating_point() or x_adv.dim() == 0:
        raise ValueError(f"x_adv must be a float tensor [B, ...], got {x_adv.dtype} {tuple(x_adv.shape)}")
    _check_dense("x_adv", x_adv)
    for name, other in others.items():
        if not isinstance(other, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(other).__name__}")
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


def _check_dense(name: str, x: Tensor) -> None:
    if not x.is_contiguous() and any(n > 1 and step == 0 for n, step in zip(x.shape, x.stride(), strict=True)):
        raise ValueError(f"{name} is an expanded view whose elements share memory: pass {name}.contiguous()")


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two real tensors overlap."""
    if a is b:
        return True
    if a.numel() == 0 or a.device.type == "meta":
        return False
    gap = b.data_ptr() - a.data_ptr()
    return gap < _reach(a) if gap >= 0 else -gap < _reach(b)


def _reach(x: Tensor) -> int:
    """Bytes from the first element of ``x`` to the end of its last."""
    if x.is_contiguous():
        return x.nbytes
    return (1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def _clean(x: Tensor, x_adv: Tensor) -> Tensor:
    """x as an op takes it: the GPU kernels read no bytes."""
    return x if x.device.type == "cpu" else pixels(x, x_adv.dtype)


def _check_buffer(buffer: Tensor, momentum: float, x_adv: Tensor, grad: Tensor, x: Tensor) -> None:
    if not isinstance(buffer, Tensor):
        raise TypeError(f"momentum_buffer must be a tensor, got {type(buffer).__name__}")
    if (buffer.shape, buffer.dtype, buffer.device) != (x_adv.shape, x_adv.dtype, x_adv.device):
        raise ValueError(
            f"momentum_buffer must be {x_adv.dtype} {list(x_adv.shape)} on {x_adv.device} like x_adv, "
            f"got {buffer.dtype} {list(buffer.shape)} on {buffer.device}"
        )
    if not 0 <= momentum < math.inf:
        raise ValueError(f"momentum must be a finite number >= 0, got {momentum}")
    if buffer.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "momentum_buffer requires grad, and pgd_step_ writes it without a gradient: pass a detached one"
        )
    _check_dense("momentum_buffer", buffer)
    for name, other in (("x_adv", x_adv), ("grad", grad), ("x", x)):
        if not torch.compiler.is_compiling() and _share_memory(buffer, other):
            raise ValueError(f"momentum_buffer shares memory with {name}: pass a tensor of its own")


def _sparsity(value: float | Tensor, x: Tensor, dtype: torch.dtype) -> tuple[float, Tensor | None]:
    """``l1_sparsity`` as the two arguments of an op, like ``_radius``."""
    if not isinstance(value, Tensor):
        if not 0 < value <= 1:
            raise ValueError(f"l1_sparsity must be in (0, 1], got {value}")
        return float(value), None
    tensor = _radius_tensor("l1_sparsity", value, x, dtype, "l1")
    if values_readable(tensor) and not bool(((tensor > 0) & (tensor <= 1)).all()):
        raise ValueError(
            f"l1_sparsity must be in (0, 1] everywhere, got {tensor.min().item()} to {tensor.max().item()}"
        )
    return 0.0, tensor


def _radius(name: str, value: float | Tensor, x: Tensor, dtype: torch.dtype, norm: str) -> tuple[float, Tensor | None]:
    """``value`` as the two arguments of an op: a float, and the tensor that replaces it or None."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be 'linf', 'l2' or 'l1', got {norm!r}")
    if not isinstance(value, Tensor):
        # Infinity is a radius (no ball) but not a length: 0 · inf is NaN.
        if not value >= 0 or (name == "step_size" and not value < math.inf):
            raise ValueError(f"{name} must be a number >= 0, got {value}")
        return float(value), None
    return 0.0, _radius_tensor(name, value, x, dtype, norm)


def _radius_tensor(name: str, value: Tensor, x: Tensor, dtype: torch.dtype, norm: str) -> Tensor:
    if value.device != x.device or not value.is_floating_point():
        raise ValueError(f"{name} must be a float tensor on {x.device}, got {value.dtype} on {value.device}")
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
    if values_readable(value) and not bool((value >= 0).all()):
        raise ValueError(f"{name} must be >= 0 everywhere, got a minimum of {value.min().item()}")
    return value.detach().reshape(shape).to(torch.float64 if dtype == torch.float64 else torch.float32)


def _limits(bounds: Bounds) -> tuple[float, float]:
    if bounds is None:
        return -math.inf, math.inf
    low, high = bounds
    if not low <= high:
        raise ValueError(f"bounds must be (low, high) with low <= high, got ({low}, {high})")
    return float(low), float(high)


def _check_ids(sample_ids: Tensor | None, x: Tensor) -> None:
    if sample_ids is None:
        return
    if sample_ids.dtype != torch.int64 or sample_ids.shape != x.shape[:1] or sample_ids.device != x.device:
        raise ValueError(
            f"sample_ids must be int64 [{len(x)}] on {x.device}, got {sample_ids.dtype} "
            f"{list(sample_ids.shape)} on {sample_ids.device}"
        )
