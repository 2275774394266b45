"""Carlini and Wagner's l2 attack: the nearest misclassified image, by binary search over the trade-off constant.

Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644, section VI-A.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_INSIDE = 1 - 1e-6  # atanh is infinite at black and white pixels
_BISECTIONS, _POLISHES, _OVERSHOOT = 12, 3, 1.01


def cw_l2(
    margin: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    steps: int = 200,
    searches: int = 9,
    learning_rate: float = 0.01,
    initial_constant: float = 1e-2,
) -> tuple[Tensor, Tensor]:
    """Minimise ||x' - x||_2^2 + c max(-margin(x'), 0) over x' = (tanh(w) + 1) / 2, with Adam on w.

    The learning rate falls to 0 over the steps, or a few hundred would end a step away from the boundary. Per sample c
    grows tenfold until the attack succeeds, then is bisected. What counts is the nearest success over all iterates,
    drawn back to the boundary.

    Args:
        margin: x' [B, C, H, W] -> [B], positive exactly where x' is misclassified (``clead.losses.margin``).
        x: clean images [B, C, H, W] in [0, 1].
        steps: Adam steps per value of c.
        searches: values of c.
        learning_rate: of Adam's first step.
        initial_constant: the first c.

    Returns:
        x' [B, C, H, W] in [0, 1] (x itself where none was found), and its l2 distance [B] in float64 (infinite there).
    """
    x = x.detach()
    start = torch.atanh((2 * x - 1) * _INSIDE)
    low, high = x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)
    constant = x.new_full((len(x),), initial_constant)
    nearest, distance = x.clone(), torch.full((len(x),), torch.inf, device=x.device, dtype=torch.float64)
    for _ in range(searches):
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        w = start.clone().requires_grad_()
        adam = torch.optim.Adam([w], lr=learning_rate)
        for step in range(steps):
            adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            with torch.enable_grad():
                point = (torch.tanh(w) + 1) / 2
                margins = margin(point)
                squared = (point - x).square().flatten(1).sum(1)
                loss = squared + constant * (-margins).clamp(min=0)
                (w.grad,) = torch.autograd.grad(loss.sum(), w)
            length = (point.detach() - x).double().flatten(1).norm(dim=1)
            success = margins.detach() > 0
            nearer = success & (length < distance)
            nearest = torch.where(nearer.view(-1, *[1] * (x.dim() - 1)), point.detach(), nearest)
            distance, found = torch.where(nearer, length, distance), found | success
            adam.step()
        high, low = torch.where(found, constant, high), torch.where(found, low, constant)
        constant = torch.where(high.isinf(), constant * 10, (low + high) / 2)
    return _polished(margin, x, *_to_the_boundary(margin, x, nearest))


def _polished(
    margin: Callable[[Tensor], Tensor], x: Tensor, nearest: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    """Try the foot of x on the boundary's tangent plane at ``nearest``: where Adam only circles, this is exact."""
    shape = (-1, *[1] * (x.dim() - 1))
    for _ in range(_POLISHES):
        with torch.enable_grad():
            point = nearest.clone().requires_grad_()
            margins = margin(point)
            (normal,) = torch.autograd.grad(margins.sum(), point)
        along = ((nearest - x) * normal).flatten(1).sum(1) - margins.detach()
        length = normal.square().flatten(1).sum(1)
        scale = torch.where(length > 0, _OVERSHOOT * along / length, 0.0).view(shape)
        foot, at = _to_the_boundary(margin, x, (x + scale * normal).clamp(0, 1))
        nearest = torch.where((at < distance).view(shape), foot, nearest)
        distance = torch.minimum(at, distance)
    return nearest, distance


@torch.no_grad()
def _to_the_boundary(margin: Callable[[Tensor], Tensor], x: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The point between x and ``found`` nearest to x that still succeeds, by bisection; and its distance."""
    shape = (-1, *[1] * (x.dim() - 1))
    inside, outside = x.new_zeros(len(x)), x.new_ones(len(x))
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        success = margin(x + middle.view(shape) * (found - x)) > 0
        inside, outside = torch.where(success, inside, middle), torch.where(success, middle, outside)
    nearest = torch.where(outside.view(shape) < 1, x + outside.view(shape) * (found - x), found)
    distance = (nearest.double() - x.double()).flatten(1).norm(dim=1)
    return nearest, torch.where(margin(nearest) > 0, distance, torch.inf)
