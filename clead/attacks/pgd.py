"""Projected gradient ascent; FGSM is its one-step form without a random start.

Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, arXiv:1706.06083.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clead.rng import Rng
from clead_kernels import Impl, pgd_step_, random_start_


@dataclass(frozen=True)
class Constraint:
    """Where x_adv may be: within ``eps`` of x in ``norm``, and inside ``bounds``.

    Attributes:
        norm: "linf", "l2" or "l1".
        eps: radius in the units of x; a float, or a tensor broadcastable to x ([B,1,1,1], [1,C,1,1]).
        bounds: the box of valid images; None means no clipping.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float | Tensor = 8 / 255
    bounds: tuple[float, float] | None = (0.0, 1.0)


def attack(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    constraint: Constraint,
    steps: int,
    step_size: float | Tensor,
    random_start: bool,
    keep: Literal["last", "best"] = "last",
    rng: Rng | None = None,
    momentum: float | None = None,
    l1_sparsity: float | Tensor = 0.01,
    impl: Impl = "auto",
) -> Tensor:
    """Maximise ``objective(x_adv).sum()`` over the constraint around x.

    Args:
        objective: x_adv [B, C, H, W] -> losses [B].
        x: clean images [B, C, H, W].
        constraint: the set to stay in.
        steps: gradient steps.
        step_size: length of a step in the norm, a float or a tensor broadcastable to x.
        random_start: start from a uniform point of the ball instead of x.
        keep: return the last iterate, or per sample the iterate of largest loss (the start included).
        rng: stream of the random start, one sample id per row of x; needed for that only.
        momentum: decay of the gradients' running sum (MI-FGSM); None steps along the gradient itself.
        l1_sparsity: part of the coordinates that an l1 step moves, a float or a [B] tensor.
        impl: implementation of the perturbation operators.

    Returns:
        x_adv [B, C, H, W], detached.

    Raises:
        ValueError: a random start without ``rng``.
    """
    ball: dict[str, Any] = {"eps": constraint.eps, "norm": constraint.norm, "bounds": constraint.bounds, "impl": impl}
    x = x.detach()
    x_adv = x.clone()
    if random_start:
        if rng is None:
            raise ValueError("rng must be a stream such as Rng.create(seed, 'attack', sample_ids) with random_start")
        random_start_(x_adv, x, seed=rng.key, sample_ids=rng.sample_ids, step=rng.step, **ball)
    step: dict[str, Any] = ball | {"step_size": step_size, "l1_sparsity": l1_sparsity}
    if momentum is not None:
        step |= {"momentum_buffer": torch.zeros_like(x), "momentum": momentum}
    best = _Best(x_adv) if keep == "best" else None
    for _ in range(steps):
        losses, grad = _value_and_grad(objective, x_adv)
        if best is not None:
            best.update(x_adv, losses)
        pgd_step_(x_adv, grad, x, **step)
    if best is None:
        return x_adv
    with torch.no_grad():
        best.update(x_adv, objective(x_adv))
    return best.x_adv


def _value_and_grad(objective: Callable[[Tensor], Tensor], x_adv: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = x_adv.detach().requires_grad_()
        losses = objective(point)
        (grad,) = torch.autograd.grad(losses.sum(), point)
    return losses.detach(), grad


class _Best:
    """Per sample, the iterate of largest loss so far; a NaN loss never replaces one."""

    def __init__(self, x_adv: Tensor) -> None:
        self.x_adv = x_adv.clone()
        self.losses = torch.full((len(x_adv),), -torch.inf, device=x_adv.device, dtype=torch.float64)

    def update(self, x_adv: Tensor, losses: Tensor) -> None:
        better = losses > self.losses
        self.losses = torch.where(better, losses.to(self.losses.dtype), self.losses)
        self.x_adv = torch.where(better.view(-1, *[1] * (x_adv.dim() - 1)), x_adv, self.x_adv)
