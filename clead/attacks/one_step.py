"""R+FGSM: a random corner of half the ball, then one step over the other half.

Tramèr et al., "Ensemble adversarial training", ICLR 2018, arXiv:1705.07204, section 4.1 (alpha = eps / 2).
FGSM and F-FGSM are ``attack`` with one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clead.attacks.pgd import Constraint
from clead.rng import Rng
from clead_kernels import Impl, pgd_step_


def rfgsm(
    objective: Callable[[Tensor], Tensor], x: Tensor, *, constraint: Constraint, rng: Rng, impl: Impl = "auto"
) -> Tensor:
    """x_adv = P(x' + eps/2 sign(grad L(x'))) with x' = x + eps/2 sign(N(0, 1)).

    Args:
        objective: x_adv [B, C, H, W] -> losses [B], maximised.
        x: clean images [B, C, H, W].
        constraint: a linf ball.
        rng: stream of the signs, one sample id per row of x.
        impl: implementation of the perturbation operators.

    Returns:
        x_adv [B, C, H, W], detached.
    """
    if constraint.norm != "linf":
        raise ValueError(f"constraint.norm must be 'linf' for R+FGSM, got {constraint.norm!r}")
    x = x.detach()
    ball: dict[str, Any] = {"eps": constraint.eps, "norm": "linf", "bounds": constraint.bounds, "impl": impl}
    signs = rng.uniform(x[0].numel(), -1.0, 1.0).view_as(x).to(x).sign()  # sign(N(0, 1)) and sign(U(-1, 1)) are one law
    half = constraint.eps / 2
    x_adv = x.clone()
    pgd_step_(x_adv, signs, x, step_size=half, **ball)
    with torch.enable_grad():
        point = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(objective(point).sum(), point)
    return pgd_step_(x_adv, grad, x, step_size=half, **ball)
