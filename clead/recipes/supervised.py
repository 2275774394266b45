"""Recipes on CIFAR-10 for training end to end: the undefended model and adversarial training with labels."""

from typing import Any

from clead.config import AttackConfig, EncoderConfig, EvaluationConfig, OptimizerConfig
from clead.methods.ce import CrossEntropy
from clead.methods.fast_at import FastAdversarialTraining
from clead.methods.mart import MART
from clead.methods.pgd_at import PGDAdversarialTraining
from clead.methods.trades import TRADES
from clead.recipes.base import Recipe

_SHARED: dict[str, Any] = {
    "data": "cifar10",
    "encoder": EncoderConfig(name="resnet18"),
    "augment": "crop_flip",
    "batch_size": 128,
    "evaluation": EvaluationConfig(attacks=("fgsm", "pgd20", "cw"), eps=(8 / 255, 16 / 255)),
}

RECIPES = (
    Recipe(
        "ce_cifar10",
        "ce",
        CrossEntropy.Config(**_SHARED, epochs=200, optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4)),
        "the usual CIFAR-10 ResNet-18 settings",
    ),
    Recipe(
        "pgd_at_cifar10",
        "pgd_at",
        PGDAdversarialTraining.Config(
            **_SHARED,
            epochs=100,
            optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4),
            attack=AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10),
        ),
        "Madry et al. 2018; batch norm in eval mode during the attack",
        "ASCL table 1: clean 84.48, PGD-20 44.05, AutoAttack 40.07",
    ),
    Recipe(
        "trades_cifar10",
        "trades",
        TRADES.Config(
            **_SHARED,
            epochs=76,
            optimizer=OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="step", milestones=(74 / 76,)),
            attack=AttackConfig(eps=0.031, step_size=0.007, steps=10),
            beta=6.0,
        ),
        "official code: 76 epochs, the rate falls after 74",
        "ASCL table 1: clean 82.2, PGD-20 51.41, AutoAttack 45.41",
    ),
    Recipe(
        "mart_cifar10",
        "mart",
        MART.Config(
            **_SHARED,
            epochs=120,
            optimizer=OptimizerConfig(lr=0.01, weight_decay=3.5e-3, schedule="step", milestones=(75 / 120, 90 / 120)),
            attack=AttackConfig(eps=0.031, step_size=0.007, steps=10),
            beta=5.0,
        ),
        "official code",
    ),
    Recipe(
        "fast_at_cifar10",
        "fast_at",
        FastAdversarialTraining.Config(
            **_SHARED,
            epochs=15,
            optimizer=OptimizerConfig(lr=0.2, weight_decay=5e-4, schedule="cyclic"),
            attack=AttackConfig(eps=8 / 255, step_size=10 / 255, steps=1),
        ),
        "official code: 15 epochs of the cyclic schedule, PreAct ResNet-18 there",
        "Wong et al.'s README: clean 86.06, PGD-50 with 10 restarts 46.06",
    ),
)
