"""Fast adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from clead.config import AttackConfig
from clead.methods.pgd_at import PGDAdversarialTraining


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
