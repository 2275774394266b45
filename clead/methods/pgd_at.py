"""PGD adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from clead.methods.base import Batch
from clead.methods.supervised import AdversarialTraining, AdversarialTrainingConfig
from clead.models import Model


class PGDAdversarialTraining(AdversarialTraining["PGDAdversarialTraining.Config"]):
    """Madry's adversarial training: cross-entropy on PGD images.

    min_theta E max_{|delta| <= eps} CE(f(x + delta), y). The attack runs with batch norm in eval mode, the step in
    train mode. Madry et al., ICLR 2018, arXiv:1706.06083.
    """

    @dataclass(frozen=True)
    class Config(AdversarialTrainingConfig):
        """PGD-AT."""

    paper = "Madry et al., ICLR 2018, arXiv:1706.06083"
    attack_in_train_mode: ClassVar[bool] = False

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """CE on x + delta."""
        x = self.augment(batch.images, batch.rng("augment"))
        x_adv = self.misclassified(model, x, batch, training=self.attack_in_train_mode)
        return {"ce_adv": F.cross_entropy(model.logits(x_adv, branch=self.adv_branch), batch.labels)}
