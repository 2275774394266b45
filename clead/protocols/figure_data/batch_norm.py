"""What batch norm sees of clean and of adversarial images, channel by channel (CLAE's fig. 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clead.models.batch_norm import BranchBatchNorm, BranchState
from clead.protocols.catalogue import find_attack
from clead.protocols.figure_data.base import FigureData, Look, NotApplicable
from clead.protocols.robustness import attack_all

IMAGES = 500

Statistics = list[tuple[Tensor, Tensor]]  # per layer the mean and the variance of its channels


def batch_norm(look: Look) -> FigureData:
    """``<kind>_mean``, ``<kind>_variance`` float32 [M] of the kinds clean and adversarial, ``layer`` int64 [M].

    The running statistics of the branches ``clean`` and ``adv`` where training kept both; else the statistics of test
    images and of their PGD-20 versions in the branch of evaluation. M counts the channels of all layers.
    """
    kinds = running(look.subject.classifier.module)
    source = "running statistics of the branches clean and adv"
    if not kinds["clean"]:
        kinds = measured(look)
        source = f"test images, and the same under PGD-20 with eps {look.eps:.4g}"
    if not kinds["clean"]:
        raise NotApplicable("needs a model with batch norm")
    tensors = {"layer": torch.cat([torch.full(mean.shape, index) for index, (mean, _) in enumerate(kinds["clean"])])}
    for kind, layers in kinds.items():
        for name, values in zip(("mean", "variance"), zip(*layers, strict=True), strict=True):
            tensors[f"{kind}_{name}"] = torch.cat([value.detach().cpu().float() for value in values])
    return FigureData(tensors, {"source": source})


def running(module: nn.Module) -> dict[str, Statistics]:
    """The running statistics of every layer that has the branches ``clean`` and ``adv``."""
    norms = [norm for norm in module.modules() if isinstance(norm, BranchBatchNorm)]
    norms = [norm for norm in norms if {"clean", "adv"} <= set(norm.config.branches)]
    states = {"clean": "clean", "adversarial": "adv"}
    return {
        kind: [(norm.state(branch).running_mean, norm.state(branch).running_var) for norm in norms]
        for kind, branch in states.items()
    }


def measured(look: Look) -> dict[str, Statistics]:
    """The statistics of test images and of their PGD-20 versions, in the layers that the logits go through."""
    subject = replace(look.subject, samples=look.subject.samples[:IMAGES])
    adversarial = attack_all(subject, find_attack("pgd20"), look.eps, skip=False).x_adv
    found = {}
    for kind, x in (("clean", subject.images), ("adversarial", adversarial)):
        with _recording(subject.classifier.module) as inputs:
            subject.classifier.predict(x)
        found[kind] = [_statistics(value) for value in inputs]
    return found


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of [B, C, …]."""
    values = x.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, correction=0)


@contextmanager
def _recording(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list of what comes into the batch norms of ``module``, in the order of the pass."""
    inputs: list[Tensor] = []
    norms = [norm for norm in module.modules() if isinstance(norm, (BranchState, _BatchNorm))]
    hooks = [norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for norm in norms]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
