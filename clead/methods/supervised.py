"""What adversarial training with labels shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from clead.config import AttackConfig, Stage, TrainConfig
from clead.methods.base import Batch, Method
from clead.models import LinearHead, Model, Pass


@dataclass(frozen=True)
class AdversarialTrainingConfig(TrainConfig):
    """What every kind of adversarial training adds."""

    attack: AttackConfig = AttackConfig()
    stages: tuple[Stage, ...] = ("pretrain", "evaluate")


A = TypeVar("A", bound=AdversarialTrainingConfig)


class AdversarialTraining(Method[A], Generic[A]):
    """Base of the methods that train a classifier on attacked images."""

    ops = ("pgd_step_", "random_start_")
    labelled = True

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A linear classifier."""
        return {"classifier": LinearHead(feature_dim, num_classes)}

    def misclassified(self, model: Model, x: Tensor, batch: Batch, *, training: bool = False) -> Tensor:
        """x + delta of largest cross-entropy, with batch norm in eval mode unless ``training``."""
        return self.perturb(
            model,
            Pass("logits", self.adv_branch),
            lambda logits: F.cross_entropy(logits, batch.labels, reduction="none"),
            x,
            self.config.attack,
            batch.rng("attack"),
            training=training,
        )

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the adversarial images, which serves the clean ones too."""
        return (self.adv_branch,)
