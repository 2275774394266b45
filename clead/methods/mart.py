"""MART."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.config import AttackConfig, Real, Stage, TrainConfig, require
from clead.losses import mart_loss
from clead.methods.base import Batch, Method
from clead.models import LinearHead, Model


class MART(Method["MART.Config"]):
    """Adversarial training that weighs the divergence by how unsure the clean prediction is.

    Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020. The attack
    ascends cross-entropy with batch norm in eval mode, from a uniform point of the ball (the official code draws
    N(0, 0.001^2)). Clean and attacked images go through the network together.
    """

    @dataclass(frozen=True)
    class Config(TrainConfig):
        """MART."""

        attack: AttackConfig = AttackConfig()
        beta: Real = 5.0
        """Weight of the divergence, lambda in the paper."""
        stages: tuple[Stage, ...] = ("pretrain", "evaluate")

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.beta >= 0, "beta", "at least 0", self.beta)

    paper = "Wang et al., ICLR 2020"
    ops = ("pgd_step_", "random_start_")
    labelled = True

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A linear classifier."""
        return {"classifier": LinearHead(feature_dim, num_classes)}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """BCE(p(x + delta), y) + beta (1 - p_y(x)) KL(p(x) || p(x + delta))."""
        x = self.augment(batch.images, batch.rng("augment"))
        x_adv = self.perturb(
            model,
            lambda x: model.logits(x, branch=self.adv_branch),
            lambda logits: F.cross_entropy(logits, batch.labels, reduction="none"),
            x,
            self.config.attack,
            batch.rng("attack"),
        )
        logits, logits_adv = model.logits(torch.cat([x, x_adv]), branch=self.adv_branch).chunk(2)
        return mart_loss(logits, logits_adv, batch.labels, beta=self.config.beta)

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the adversarial images, which serves both streams."""
        return (self.adv_branch,)
