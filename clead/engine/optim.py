"""Optimisers and learning-rate schedules as closed forms of the step."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clead.config import OptimizerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over ``parameters``, on a CPU or CUDA device: fused, where torch has it so.

    A fused step wants a gradient in the memory layout of its parameter, which is how autograd makes it.
    """
    groups = _groups(list(parameters), config)
    if config.name == "lars":
        return LARS(groups, lr=config.lr, momentum=config.momentum, trust=config.trust)
    if config.name != "sgd":
        adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        return adam(groups, lr=config.lr, fused=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        # The same as none at all, but the fused step wants all parameters to have one or none.
        for parameter in itertools.chain.from_iterable(group["params"] for group in groups):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(parameters: list[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    """All parameters in one group, or those without weight decay and adaptation in a second one."""
    if config.decay_vectors:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, "trust": None},
    ]


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradient, weight decay included, is scaled tensor by tensor.

    ``v <- momentum v + ratio (g + weight_decay w)``, ``w <- w - lr v`` with ``ratio = trust |w| / (|g| + weight_decay
    |w|)``, and 1 where either norm is 0. You et al., "Large batch training of convolutional networks", 2017,
    arXiv:1708.03888, eq. 6, with the learning rate outside of the momentum as in torch's SGD.

    Args:
        groups: parameters or groups of them; a group may have a ``weight_decay``, and ``trust`` None for plain SGD.
        lr: learning rate.
        momentum: in [0, 1).
        trust: length of a step over length of the weights, at learning rate 1.
    """

    def __init__(self, groups: Any, *, lr: float, momentum: float, trust: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; no value is read back from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(group, weights)
        return loss

    def _step(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        grads: Any = [p.grad for p in weights]
        ratios = _trust_ratios(weights, grads, group)
        for p in weights:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcmul_(buffers, grads, ratios)
        if group["weight_decay"]:
            torch._foreach_addcmul_(buffers, weights, ratios, group["weight_decay"])
        torch._foreach_add_(weights, buffers, alpha=-group["lr"])


def _trust_ratios(weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """trust |w| / (|g| + weight_decay |w|) of every tensor, 1 where a norm is 0: 0-d tensors on the device."""
    if group["trust"] is None:
        return list(torch.ones(len(weights), dtype=weights[0].dtype, device=weights[0].device).unbind())
    norms, grad_norms = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(grads))
    ratios = group["trust"] * norms / (grad_norms + group["weight_decay"] * norms)
    return list(torch.where((norms > 0) & (grad_norms > 0), ratios, 1.0).unbind())


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step ``step`` (from 0): linear warm-up, then the schedule's shape over the rest of the stage."""
    warmup, total = config.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        factors = config.gamma if len(config.gamma) > 1 else config.gamma * len(config.milestones)
        return config.lr * math.prod(factors[: bisect_right(config.milestones, step / max(1, total))])
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "cyclic":
        return config.lr * (1 - abs(2 * progress - 1))
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
