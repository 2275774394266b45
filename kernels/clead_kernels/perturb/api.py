"""The public perturbation operators: arguments checked, implementation chosen, one registered op called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .. import _trial
from .._arguments import check_flag
from ..dispatch import Impl, Support, find
from . import arguments, ops
from .arguments import Bounds, Norm


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
    arguments.check_images("pgd_step_", x_adv, grad=grad, x=x)
    radius, radius_tensor = arguments.radius("eps", eps, x, x_adv.dtype, norm)
    length, length_tensor = arguments.radius("step_size", step_size, x, x_adv.dtype, norm)
    low, high = arguments.limits(bounds)
    check_flag("targeted", targeted)
    row = find("pgd_step_", impl, device=x.device, dtype=x_adv.dtype, norm=norm)
    x = arguments.clean(x, x_adv)
    rest: tuple[Any, ...] = (radius, length, radius_tensor, length_tensor, low, high, targeted)
    if norm == "l1":
        part, part_tensor = arguments.sparsity(l1_sparsity, x, x_adv.dtype)
        rest = radius, length, part, radius_tensor, length_tensor, part_tensor, low, high, targeted
    if momentum_buffer is not None:
        arguments.check_buffer(momentum_buffer, momentum, x_adv, grad, x)
    taken = row.impl
    if row.on_trial and impl == "auto":
        write = partial(_step, norm, grad, x, momentum, rest)
        taken = _tried(row, (norm, targeted, grad.is_contiguous()), write, x, x_adv, momentum_buffer)
    _step(norm, grad, x, momentum, rest, taken, x_adv, momentum_buffer)
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
    arguments.check_images("random_start_", x_adv, x=x)
    arguments.check_ids(sample_ids, x)
    radius, radius_tensor = arguments.radius("eps", eps, x, x_adv.dtype, norm)
    low, high = arguments.limits(bounds)
    arguments.check_whole("seed", seed, 64)
    arguments.check_whole("step", step, 32)
    # The dispatcher's integers are signed; Philox only looks at the bits.
    key = seed - 2**64 if seed >= 2**63 else seed
    row = find("random_start_", impl, device=x.device, dtype=x_adv.dtype, norm=norm)
    rest = arguments.clean(x, x_adv), radius, radius_tensor, key, sample_ids, step, low, high
    taken = row.impl
    if row.on_trial and impl == "auto":
        write = partial(_write, ops.RANDOM_START[norm], rest)
        taken = _tried(row, (norm, sample_ids is None), write, rest[0], x_adv)
    ops.RANDOM_START[norm][taken](x_adv, *rest)
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
    arguments.check_images("project_", x_adv, x=x)
    radius, radius_tensor = arguments.radius("eps", eps, x, x_adv.dtype, norm)
    low, high = arguments.limits(bounds)
    row = find("project_", impl, device=x.device, dtype=x_adv.dtype, norm=norm)
    rest = arguments.clean(x, x_adv), radius, radius_tensor, low, high
    taken = row.impl
    if row.on_trial and impl == "auto":
        taken = _tried(row, (norm,), partial(_write, ops.PROJECT[norm], rest), rest[0], x_adv)
    ops.PROJECT[norm][taken](x_adv, *rest)
    return x_adv


def _step(
    norm: Norm,
    grad: Tensor,
    x: Tensor,
    momentum: float,
    rest: tuple[Any, ...],
    impl: str,
    x_adv: Tensor,
    buffer: Tensor | None,
) -> None:
    if buffer is not None:
        ops.MOMENTUM[impl](buffer, grad, float(momentum))
        grad = buffer
    ops.PGD_STEP[norm][impl](x_adv, grad, x, *rest)


def _write(by_impl: dict[str, ops.Op], rest: tuple[Any, ...], impl: str, x_adv: Tensor) -> None:
    by_impl[impl](x_adv, *rest)


def _tried(
    row: Support, kind: tuple[Any, ...], write: Callable[..., None], x: Tensor, x_adv: Tensor, *others: Tensor | None
) -> str:
    """What runs a call that writes x_adv and ``others``, as ``write(impl, x_adv, *others)`` does."""

    def run(impl: str, *written: Tensor | None) -> tuple[Tensor, ...]:
        write(impl, *written)
        return tuple(y for y in written if y is not None)

    size = x.numel() // max(1, x.shape[0])
    # A block of threads, a cluster, or several passes; branches, for what a compiler may not know the value of.
    sample = len([power for power in range(8, 22) if size > 2**power])
    kind = (*kind, sample, x.is_contiguous(), x_adv.is_contiguous())
    return _trial.choose(row.op, row.impl, kind, run, x_adv, *others, accuracy=_trial.BITS, writes=True)
