"""Optimisers and learning-rate schedules as closed forms of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clead.config import OptimizerConfig


class LARS(torch.optim.Optimizer):
    """SGD whose gradients are scaled, tensor by tensor, to the length of the weights.

        d = (g + weight_decay * w) * trust * |w| / (|g| + weight_decay * |w|)
        v = momentum * v + d,   w = w - lr * v

    A tensor whose weights or gradients are all zero keeps the factor 1. You, Gitman & Ginsburg, "Large batch training
    of convolutional networks", 2017, arXiv:1708.03888; there the rate is inside v, here outside as in torch's SGD and
    in the LARS of the RoCL and ACL code, which differs only where the rate changes.

    Args:
        params: parameters, or groups of them; a group with ``adapt=False`` gets plain SGD.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: L2 penalty.
        trust: trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; nothing here waits for the device."""
        if closure is not None:
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            pairs = [(weight, weight.grad) for weight in group["params"] if weight.grad is not None]
            if pairs:
                self._update([weight for weight, _ in pairs], [gradient for _, gradient in pairs], group)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        directions = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            weight_norm, gradient_norm = (torch.stack(torch._foreach_norm(each)) for each in (weights, gradients))
            factor = group["trust"] * weight_norm / (gradient_norm + group["weight_decay"] * weight_norm)
            factor = torch.where((weight_norm > 0) & (gradient_norm > 0), factor, 1.0)
            torch._foreach_mul_(directions, list(factor.unbind()))
        velocities = [self.state[weight].setdefault("velocity", torch.zeros_like(weight)) for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, directions)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over ``parameters``."""
    everything = list(parameters)
    groups: list[dict[str, Any]] = [{"params": everything}]
    if config.exclude_vectors:
        apart: dict[str, Any] = {"params": [it for it in everything if it.dim() <= 1], "weight_decay": 0.0}
        if config.name == "lars":
            apart["adapt"] = False
        groups = [{"params": [it for it in everything if it.dim() > 1]}, apart]
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
    shared: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
    return LARS(groups, trust=config.trust, **shared) if config.name == "lars" else torch.optim.SGD(groups, **shared)


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step ``step`` (from 0): linear warm-up, then the schedule; milestones count from the very start."""
    warmup, total = config.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (config.warmup_start * warmup + (1 - config.warmup_start) * (step + 1)) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "cyclic":
        return config.lr * (1 - abs(2 * progress - 1))
    if config.schedule == "step":
        factors = config.gamma if len(config.gamma) > 1 else config.gamma * len(config.milestones)
        passed = (step / total >= milestone for milestone in config.milestones)
        return config.lr * math.prod(factor for factor, there in zip(factors, passed, strict=True) if there)
    return config.lr
