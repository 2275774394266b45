"""Recipes on CIFAR-10."""

from typing import Any

from clead.config import AttackConfig, EncoderConfig, EvaluationConfig, LinearEvalConfig, OptimizerConfig
from clead.methods.ce import CrossEntropy
from clead.methods.clead import CLead
from clead.methods.pgd_at import PGDAdversarialTraining
from clead.methods.simclr import SimCLR
from clead.recipes.base import Recipe

_SHARED: dict[str, Any] = {
    "data": "cifar10",
    "encoder": EncoderConfig(name="resnet18"),
    "evaluation": EvaluationConfig(attacks=("fgsm", "pgd20", "cw"), eps=(8 / 255, 16 / 255)),
}

RECIPES = (
    Recipe(
        "ce_cifar10",
        "ce",
        CrossEntropy.Config(
            **_SHARED,
            augment="crop_flip",
            epochs=200,
            batch_size=128,
            optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4),
        ),
        "the usual CIFAR-10 ResNet-18 settings",
    ),
    Recipe(
        "pgd_at_cifar10",
        "pgd_at",
        PGDAdversarialTraining.Config(
            **_SHARED,
            augment="crop_flip",
            epochs=100,
            batch_size=128,
            optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4),
            attack=AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10),
        ),
        "Madry et al. 2018; batch norm in eval mode during the attack",
        "ASCL table 1: clean 84.48, PGD-20 44.05, AutoAttack 40.07",
    ),
    Recipe(
        "simclr_cifar10",
        "simclr",
        SimCLR.Config(
            **_SHARED,
            augment="simclr",
            epochs=100,
            batch_size=256,
            temperature=0.5,
            optimizer=OptimizerConfig(name="adam", lr=3e-4, schedule="constant"),
        ),
        "CLAE's official code, SimCLR baseline",
        "CLAE table 1: linear evaluation 83.27",
    ),
    Recipe(
        "clead_cifar10",
        "clead",
        CLead.Config(
            **_SHARED,
            augment="rrc_flip",
            epochs=200,
            batch_size=512,
            temperature=0.1,
            optimizer=OptimizerConfig(lr=0.4, weight_decay=5e-4, warmup_epochs=10),
            attack=AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10),
            linear_eval=LinearEvalConfig(optimizer=OptimizerConfig(name="adam", lr=1e-4, schedule="constant")),
        ),
        "C-LEAD sections 3 and 4; epochs, weight decay, warm-up and the training attacks are not given there",
        "C-LEAD table 1, ResNet-18 at 8/255: FGSM 25.78, PGD 31.27, CW 21.55",
    ),
)
