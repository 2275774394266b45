"""PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from clead.config import AttackConfig, Stage, TrainConfig
from clead.methods.base import Batch, Method
from clead.models import LinearHead, Model


class PGDAdversarialTraining(Method["PGDAdversarialTraining.Config"]):
    """Madry's adversarial training: cross-entropy on PGD images.

    min_theta E max_{|delta| <= eps} CE(f(x + delta), y). The attack runs with batch norm in eval mode, the step in
    train mode. Madry et al., ICLR 2018, arXiv:1706.06083.
    """

    @dataclass(frozen=True)
    class Config(TrainConfig):
        """PGD-AT."""

        attack: AttackConfig = AttackConfig()
        stages: tuple[Stage, ...] = ("pretrain", "evaluate")

    paper = "Madry et al., ICLR 2018, arXiv:1706.06083"
    ops = ("pgd_step_", "random_start_")
    labelled = True
    attack_in_train_mode: ClassVar[bool] = False

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A linear classifier."""
        return {"classifier": LinearHead(feature_dim, num_classes)}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """CE on x + delta."""
        branch = self.adv_branch
        x_adv = self.perturb(
            model,
            lambda x: model.logits(x, branch=branch),
            lambda logits: F.cross_entropy(logits, batch.labels, reduction="none"),
            self.augment(batch.images, batch.rng("augment")),
            self.config.attack,
            batch.rng("attack"),
            training=self.attack_in_train_mode,
        )
        return {"ce_adv": F.cross_entropy(model.logits(x_adv, branch=branch), batch.labels)}

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the adversarial images, which are all it trains on."""
        return (self.adv_branch,)
