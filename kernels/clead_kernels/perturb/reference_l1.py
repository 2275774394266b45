"""The specification of the l1 operators, in eager PyTorch; what holds for all norms stands in ``reference``.

Works in float64 and rounds towards x. What decides where a sample ends up is integer: a count of coordinates and the
sums of the projection, exact in any order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arithmetic import divide, per_sample, power_of_two, round_towards
from .draws import exponential


def pgd_step_l1(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    sparsity: float | Tensor,
    low: float,
    high: float,
    targeted: bool,
) -> Tensor:
    """project(x_adv ± step_size · sign(grad)/n on the n chosen coordinates, 0 on the others).

    Free is a coordinate whose gradient is neither 0 nor NaN and that is not at the bound it is pushed against. Chosen
    are the free ones with |grad| at least that of the k-th largest free one, k = ⌊sparsity · d + ½⌋ in [1, d]; so ties
    are chosen together, and all free ones where there are fewer than k.
    """
    direction = -torch.sign(grad) if targeted else torch.sign(grad)
    start = x_adv.double()
    free = torch.where(direction > 0, start < high, start > low) & (direction != 0)
    size = x[0].numel()
    magnitude = torch.where(free, grad.abs(), 0.0).reshape(len(x), -1)
    wanted = (
        torch.floor(torch.as_tensor(sparsity, dtype=torch.float64, device=x.device) * size + 0.5).clamp(1, size).long()
    )
    last = wanted.flatten().expand(len(x))[:, None] - 1
    least = magnitude.sort(dim=1, descending=True).values.gather(1, last)
    chosen = free & (grad.abs() >= per_sample(least, x))
    length = divide(step_size, per_sample(chosen.reshape(len(x), -1).sum(1).clamp_min(1).double(), x))
    return project_l1(start + torch.where(chosen, direction.double() * length, 0.0), x, eps, low, high)


def project_l1(x_adv: Tensor, x: Tensor, eps: float | Tensor, low: float, high: float) -> Tensor:
    """The nearest point with ‖x_adv - x‖₁ ≤ eps and low ≤ x_adv ≤ high: all coordinates shrink by one length λ.

    |y - x| = min(max(|x_adv - x| - λ, 0), room to the bound), with the least λ ≥ 0 that brings the sum to eps
    (Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021).
    """
    centre, moved = x.double(), x_adv.double()
    delta = moved - centre
    distance, room = delta.abs(), torch.where(delta < 0, centre - low, high - centre).clamp_min(0.0)
    radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device).flatten().expand(len(x))
    length = per_sample(_shrinkage(distance.reshape(len(x), -1), room.reshape(len(x), -1), radius), x)
    shrunk = (distance - length).clamp_min(0.0)
    nearest = torch.where(length == 0, moved, centre + torch.where(delta < 0, -shrunk, shrunk))
    return round_towards(x, nearest.clamp(low, high))


def _shrinkage(distance: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The least λ ≥ 0 with Σ min(max(distance - λ, 0), room) ≤ eps, [B]; NaN where a distance is not finite.

    Lengths are counted in units of a power of two, so small that the largest distance has up to 52 bits and so large
    that a sum of them fits in int64; distance and room are rounded up to whole units and eps down, so that the true
    sum does not exceed eps either. The sum is linear between its corners λ = distance and λ = distance - room, where
    its slope changes by one.
    """
    size = distance.shape[1]
    largest = distance.amax(1)
    usable = torch.isfinite(largest) & (largest > 0)
    power = torch.where(usable, power_of_two(largest), 1.0)
    scale = 2.0 ** (min(52, 62 - size.bit_length()) - 1)
    units = [torch.ceil(v / power[:, None] * scale) for v in (distance, torch.minimum(distance, room))]
    outer, inner = (torch.where(usable[:, None], v, 0.0).long() for v in units)
    budget = torch.floor((eps / power * scale).clamp_max(2.0**62)).long()[:, None]
    corners, order = torch.cat((outer, outer - inner), dim=1).sort(dim=1, descending=True)
    sign = torch.where(order < size, 1, -1)
    slope, total = sign.cumsum(1), (sign * corners).cumsum(1)
    inside = (total - slope * corners <= budget).sum(1, keepdim=True)
    excess = total.gather(1, inside - 1) - budget
    crossed = -torch.div(-excess, slope.gather(1, inside - 1).clamp_min(1), rounding_mode="floor")
    length = torch.where(inside < 2 * size, crossed, 0)[:, 0].double() / scale * power
    return torch.where(torch.isfinite(largest), length, math.nan)


def random_start_l1(
    x: Tensor, eps: float | Tensor, seed: int, sample_ids: Tensor, step: int, low: float, high: float
) -> Tensor:
    """Uniform in the l1 ball, then clamped to the bounds: x ± eps · e / Σ_{j<d+1} e_j.

    The first d of d + 1 exponential numbers over their sum are the spacings of d uniform points of [0, 1], hence a
    uniform point of the simplex. Clamped, the point is the nearest one of ball and box. e are integers
    (``exponential``), hence the sum is exact in any order.
    """
    size = x[0].numel()
    lengths, negative = exponential(seed, sample_ids, size + 1, step=step)
    total = lengths.sum(1, keepdim=True).clamp_min(1).double()
    share = lengths[:, :size].double() / total
    delta = eps * torch.where(negative[:, :size], -share, share).reshape(x.shape)
    return round_towards(x, (x.double() + delta).clamp(low, high))
