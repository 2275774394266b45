"""The specification of the perturbation operators, in eager PyTorch. Everything here returns a new tensor.

``eps`` and ``step_size`` are floats or tensors that broadcast against x; for l2 and l1 they are constant within a
sample.
``low`` and ``high`` are the bounds, infinite where there are none.

Precision. linf works in float32 (float64 for float64 images), so x - eps and x + eps are what float32 says they are.
l2 works in float64, its sums in the order of ``ordered_sum``. Both are then rounded once *towards x*, so that a box
or ball that holds the exact result holds the stored one too; for linf and float32 that rounding changes nothing.
l1 has a file of its own, ``reference_l1``.

Order. x_adv is projected on the ball first and clamped to the bounds last. For x inside the bounds the clamp never
moves x_adv away from x; for x outside them the bounds win. NaN in x_adv or x stays NaN; l2 and l1, which
then have no distance to go by, leave nothing else of the sample. The sign of a zero is not specified.

Randomness. Element e of a sample, counted in C order whatever the memory format, owns draw e of ``philox``.

Bits. All float arithmetic is elementwise IEEE arithmetic in the order written, never fused into multiply-adds, with
correctly rounded division and square root and no library function, and its sums have an order: every implementation
can and must give the same bits, which depend on nothing but the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from .arithmetic import divide, ordered_sum, per_sample, power_of_two, round_towards, sqrt
from .draws import gaussian


def pgd_step_linf(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    low: float,
    high: float,
    targeted: bool,
) -> Tensor:
    """project(x_adv ± step_size · sign(grad)); where the gradient is 0 or NaN the element does not move."""
    ascent = step_size * torch.sign(_wide(grad))
    moved = _wide(x_adv) - ascent if targeted else _wide(x_adv) + ascent
    return project_linf(moved, x, eps, low, high)


def pgd_step_l2(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    low: float,
    high: float,
    targeted: bool,
) -> Tensor:
    """project(x_adv ± step_size · grad / ‖grad‖₂); a sample whose gradient is 0 or not finite does not move."""
    ascent = _ascent(grad.double(), step_size)
    moved = x_adv.double() - ascent if targeted else x_adv.double() + ascent
    return project_l2(moved, x, eps, low, high)


def project_linf(x_adv: Tensor, x: Tensor, eps: float | Tensor, low: float, high: float) -> Tensor:
    """The nearest point with x - eps ≤ x_adv ≤ x + eps and low ≤ x_adv ≤ high."""
    centre = _wide(x)
    nearest = torch.minimum(torch.maximum(_wide(x_adv), centre - eps), centre + eps)
    return round_towards(x, nearest.clamp(low, high))


def project_l2(x_adv: Tensor, x: Tensor, eps: float | Tensor, low: float, high: float) -> Tensor:
    """x_adv pulled straight towards x onto ‖x_adv - x‖₂ ≤ eps, then clamped to the bounds."""
    centre, moved = x.double(), x_adv.double()
    delta = moved - centre
    norm = _norm(delta)
    nearest = torch.where(norm <= eps, moved, centre + delta * divide(eps, norm))
    return round_towards(x, nearest.clamp(low, high))


def random_start_linf(
    x: Tensor, eps: float | Tensor, seed: int, sample_ids: Tensor, step: int, low: float, high: float
) -> Tensor:
    """project(x + (2u - 1) · eps), u = (word >> 8) · 2⁻²⁴ of the element's own draw; 2u - 1 is exact."""
    centre = _wide(x)
    u = philox.uniform(seed, sample_ids, x[0].numel(), step=step).reshape(x.shape).to(centre.dtype)
    delta = (2.0 * u - 1.0) * eps
    return project_linf(centre + delta, x, eps, low, high)


def random_start_l2(
    x: Tensor, eps: float | Tensor, seed: int, sample_ids: Tensor, step: int, low: float, high: float
) -> Tensor:
    """Uniform in the l2 ball, then clamped to the bounds: x + eps · (z_e / √(Σ_{j<d+2} z_j²)) for the d elements e.

    The first d of d + 2 coordinates of a uniform point of the unit sphere are a uniform point of the d-ball, so
    no radius has to be drawn. z are Gaussian integers (``gaussian``), hence the sum is exact in any order.
    """
    size = x[0].numel()
    z = gaussian(seed, sample_ids, size + 2, step=step)
    length = sqrt((z * z).sum(1, keepdim=True).clamp_min(1).double())
    delta = eps * (z[:, :size].double() / length).reshape(x.shape)
    return round_towards(x, (x.double() + delta).clamp(low, high))


def accumulate(buffer: Tensor, grad: Tensor, momentum: float) -> Tensor:
    """momentum · buffer + grad / ‖grad‖₁ per sample, rounded towards 0; a grad that is 0 or not finite adds nothing.

    Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, eq. 6.
    """
    wide = grad.double()
    length = per_sample(ordered_sum(wide.abs().reshape(len(grad), -1)), grad)
    share = torch.where((length > 0) & torch.isfinite(length), wide / length, 0.0)
    return round_towards(torch.zeros_like(buffer), buffer.double() * momentum + share)


def pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Clean images as ``dtype``: bytes stand for byte/255, divided in float32 (float64) and rounded to nearest."""
    if x.dtype != torch.uint8:
        return x
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (x.to(wide) / x.new_full((1,), 255, dtype=wide)).to(dtype)


def _ascent(grad: Tensor, step_size: float | Tensor) -> Tensor:
    """step_size · grad / ‖grad‖₂ per sample, 0 for a sample whose gradient is 0 or not finite.

    A power of two brings the gradient near 1 first, so no square over- or underflows; it changes no other bit, and
    an implementation may leave it out where the squares are safe without it.
    """
    largest = per_sample(grad.reshape(len(grad), -1).abs().amax(1), grad)
    scaled = grad / power_of_two(largest)
    moves = (largest > 0) & torch.isfinite(largest)
    return torch.where(moves, scaled * divide(step_size, _norm(scaled)), 0.0)


def _norm(delta: Tensor) -> Tensor:
    """‖delta‖₂ per sample, [B, 1, …]."""
    return per_sample(sqrt(ordered_sum(delta.reshape(len(delta), -1).square())), delta)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
