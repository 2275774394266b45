"""MI-FGSM: the sign of a running sum of normalised gradients.

Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, arXiv:1710.06081, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clead.attacks.pgd import Constraint
from clead_kernels import Impl, pgd_step_


def mifgsm(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    constraint: Constraint,
    steps: int,
    step_size: float | Tensor,
    decay: float = 1.0,
    impl: Impl = "auto",
) -> Tensor:
    """g_{t+1} = decay g_t + grad L / ||grad L||_1, x_{t+1} = P(x_t + step_size d(g_{t+1})), from g_0 = 0 and x.

    d is the sign in the linf ball, and the direction of unit length in l2.

    Args:
        objective: x_adv [B, C, H, W] -> losses [B], maximised.
        x: clean images [B, C, H, W].
        constraint: the set to stay in.
        steps: gradient steps.
        step_size: length of a step; the paper's is eps / steps.
        decay: the paper's mu.
        impl: implementation of the perturbation operators.

    Returns:
        The last iterate [B, C, H, W], detached.
    """
    x = x.detach()
    x_adv, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        with torch.enable_grad():
            point = x_adv.clone().requires_grad_()
            (grad,) = torch.autograd.grad(objective(point).sum(), point)
        length = grad.abs().flatten(1).sum(1).view(-1, *[1] * (x.dim() - 1))
        momentum = decay * momentum + torch.where(length > 0, grad / length, 0.0)
        pgd_step_(
            x_adv,
            momentum,
            x,
            eps=constraint.eps,
            step_size=step_size,
            norm=constraint.norm,
            bounds=constraint.bounds,
            impl=impl,
        )
    return x_adv
