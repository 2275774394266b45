"""Fast adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clead.attacks import frozen
from clead.config import AttackConfig
from clead.methods.base import Batch
from clead.methods.pgd_at import PGDAdversarialTraining
from clead.models import Model

LOOK_EVERY = 20


class FastAdversarialTraining(PGDAdversarialTraining):
    """One FGSM step of 1.25 eps from a random start (F-FGSM), and a cyclic learning rate.

    Wong et al., "Fast is better than free: revisiting adversarial training", ICLR 2020, arXiv:2001.03994. As in their
    code the attack sees batch norm with the statistics of its batch; unlike there, it leaves the running ones alone.
    """

    @dataclass(frozen=True)
    class Config(PGDAdversarialTraining.Config):
        """Fast adversarial training."""

        attack: AttackConfig = AttackConfig(eps=8 / 255, step_size=10 / 255, steps=1)

    paper = "Wong et al., ICLR 2020, arXiv:2001.03994"
    attack_in_train_mode = True

    def misclassified(self, model: Model, x: Tensor, batch: Batch, *, training: bool = False) -> Tensor:
        """x + delta as in PGD-AT; some logged steps also get ``adv_accuracy`` there and ``halfway_accuracy``.

        The latter, at x + delta / 2, is the smaller one once the network has learnt to fool the single step instead of
        to resist it: catastrophic overfitting (Kim et al., AAAI 2021, arXiv:2010.01799).
        """
        x_adv = super().misclassified(model, x, batch, training=training)
        if batch.metrics is not None and batch.step % LOOK_EVERY == 0:
            with frozen(model), torch.no_grad():
                for name, images in (("adv_accuracy", x_adv), ("halfway_accuracy", (x + x_adv) / 2)):
                    right = model.logits(images, branch=self.adv_branch).argmax(1) == batch.labels
                    batch.metrics[name] = right.double().mean()
        return x_adv
