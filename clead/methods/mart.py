"""MART."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clead.config import Real, require
from clead.losses import mart_loss
from clead.methods.base import Batch
from clead.methods.supervised import AdversarialTraining, AdversarialTrainingConfig
from clead.models import Model


class MART(AdversarialTraining["MART.Config"]):
    """Adversarial training that weighs the divergence by how unsure the clean prediction is.

    Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020. The attack
    ascends cross-entropy with batch norm in eval mode, from a uniform point of the ball (the official code draws
    N(0, 0.001^2)). Clean and attacked images go through the network together.
    """

    @dataclass(frozen=True)
    class Config(AdversarialTrainingConfig):
        """MART."""

        beta: Real = 5.0
        """Weight of the divergence, lambda in the paper."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.beta >= 0, "beta", "at least 0", self.beta)

    paper = "Wang et al., ICLR 2020"

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """BCE(p(x + delta), y) + beta (1 - p_y(x)) KL(p(x) || p(x + delta))."""
        x = self.augment(batch.images, batch.rng("augment"))
        x_adv = self.misclassified(model, x, batch)
        logits, logits_adv = model.logits(torch.cat([x, x_adv]), branch=self.adv_branch).chunk(2)
        return mart_loss(logits, logits_adv, batch.labels, beta=self.config.beta)
