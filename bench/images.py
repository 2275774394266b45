"""Rivals of the perturbations: ``f(x_adv, grad, x, case=)``, which returns the new image.

The l1 forms follow Tramèr and Boneh (arXiv:1904.13000) for the step and Croce and Hein (arXiv:2103.01208) for the
projection onto ball and box together, which is found by sorting the corners of a piecewise linear sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Perturb


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def eager_project(x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    """As the attack loops of RoCL and of robustness toolboxes have it."""
    if case.norm == "linf":
        x_adv = torch.min(torch.max(x_adv, x - case.eps), x + case.eps)
        return torch.clamp(x_adv, 0, 1)
    if case.norm == "l1":
        return sorted_project(x_adv, x, case.eps)
    delta = x_adv - x
    norms = per_sample(delta.view(len(x), -1).norm(p=2, dim=1), x)
    delta = delta * torch.min(case.eps / norms, torch.ones_like(norms))
    return torch.clamp(x + delta, 0, 1)


def eager_pgd_step(x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    if case.norm == "linf":
        moved = x_adv.detach() + case.step_size * torch.sign(grad.detach())
    elif case.norm == "l1":
        moved = sparse_move(x_adv, grad, case.step_size, case.moving)
    else:
        norms = per_sample(grad.view(len(x), -1).norm(p=2, dim=1), x)
        moved = x_adv.detach() + case.step_size * grad / norms
    return eager_project(moved, grad, x, case=case)


def sparse_move(x_adv: Tensor, grad: Tensor, length: float, count: int) -> Tensor:
    """Of the coordinates that no bound holds back, the ``count`` with the largest gradients share the step."""
    free = torch.where(grad > 0, x_adv < 1, x_adv > 0)
    size = (grad.abs() * free).flatten(1)
    chosen = (size >= size.topk(count, dim=1).values[:, -1:]).view_as(grad) & free
    return x_adv + length * chosen * grad.sign() / per_sample(chosen.flatten(1).sum(1), x_adv)


def sorted_project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point of the l1 ball and [0, 1]; in float32, where halves would lose the sums."""
    centre = x.float()
    delta = (x_adv.float() - centre).flatten(1)
    room = torch.where(delta < 0, centre.flatten(1), 1 - centre.flatten(1))
    outer, inner = delta.abs(), torch.minimum(delta.abs(), room)
    # The sum is linear between its corners: at outer - inner a coordinate starts to shrink, at outer it is 0.
    corners, order = torch.cat([outer - inner, outer], 1).sort(1)
    slopes = torch.cat([-torch.ones_like(outer), torch.ones_like(outer)], 1).gather(1, order).cumsum(1)
    drops = slopes[:, :-1] * corners.diff(dim=1)
    sums = inner.sum(1, keepdim=True) + torch.nn.functional.pad(drops.cumsum(1), (1, 0))
    index = (sums > eps).sum(1, keepdim=True).sub(1).clamp(min=0)
    shrink = corners.gather(1, index) + (sums.gather(1, index) - eps) / -slopes.gather(1, index)
    shrink = torch.where(inner.sum(1, keepdim=True) > eps, shrink, 0.0)
    kept = torch.minimum((outer - shrink).clamp(min=0), room)
    return (centre.flatten(1) + kept * delta.sign()).view_as(x).to(x.dtype)


def eager_random_start(x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    """Fresh noise of the global generator: other numbers than ours, from the same distribution."""
    if case.norm == "linf":
        delta = torch.empty_like(x).uniform_(-case.eps, case.eps)
    else:
        delta = torch.randn_like(x)
        size = delta[0].numel()
        radius = torch.rand(len(x), device=x.device).pow(1 / size).to(x.dtype) * case.eps
        delta = delta * per_sample(radius / delta.view(len(x), -1).norm(p=2, dim=1), x)
    return torch.clamp(x + delta, 0, 1)


def careful_project(x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    """In place, with the fewest passes that eager operators allow."""
    if case.norm == "linf":
        return torch.clamp(x_adv, x - case.eps, x + case.eps, out=x_adv).clamp_(0, 1)
    if case.norm == "l1":
        return searched_project(x_adv, x, case.eps)
    delta = x_adv.sub_(x)
    scale = (case.eps / torch.linalg.vector_norm(delta.flatten(1), dim=1)).clamp_(max=1)
    return torch.addcmul(x, delta, per_sample(scale, x), out=x_adv).clamp_(0, 1)


def searched_project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """``sorted_project`` by bisection: thirty passes instead of a sort of twice as many corners."""
    centre = x.float().flatten(1)
    delta = x_adv.float().flatten(1).sub_(centre)
    room, sign = torch.where(delta < 0, centre, 1 - centre), delta.sign()
    outer = delta.abs_()
    high = outer.amax(1, keepdim=True)
    low = torch.zeros_like(high)
    inside = torch.minimum(outer, room).sum(1, keepdim=True) <= eps
    for _ in range(30):
        middle = (low + high) / 2
        beyond = torch.minimum((outer - middle).clamp_(min=0), room).sum(1, keepdim=True) > eps
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    kept = torch.minimum((outer - torch.where(inside, 0.0, high)).clamp_(min=0), room)
    return torch.addcmul(centre, kept, sign).view_as(x).to(x.dtype)


def careful_pgd_step(x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    if case.norm == "linf":
        x_adv.add_(grad.sign(), alpha=case.step_size)
    elif case.norm == "l1":
        x_adv = sparse_move(x_adv, grad, case.step_size, case.moving)
    else:
        x_adv.addcmul_(grad, per_sample(case.step_size / torch.linalg.vector_norm(grad.flatten(1), dim=1), x))
    return careful_project(x_adv, grad, x, case=case)


def careful_random_start(x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    if case.norm == "linf":
        return x_adv.uniform_(-case.eps, case.eps).add_(x).clamp_(0, 1)
    noise = x_adv.normal_()
    radius = torch.rand(len(x), device=x.device).pow_(1 / x[0].numel()) * case.eps
    scale = (radius / torch.linalg.vector_norm(noise.flatten(1), dim=1, dtype=torch.float32)).to(x.dtype)
    return torch.addcmul(x, noise, per_sample(scale, x), out=x_adv).clamp_(0, 1)


EAGER: dict[str, Callable[..., Any]] = {
    "pgd_step_": eager_pgd_step,
    "project_": eager_project,
    "random_start_": eager_random_start,
}
CAREFUL: dict[str, Callable[..., Any]] = {
    "pgd_step_": careful_pgd_step,
    "project_": careful_project,
    "random_start_": careful_random_start,
}
