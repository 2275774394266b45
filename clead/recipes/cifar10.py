"""Recipes on CIFAR-10: SimCLR and C-LEAD."""

from dataclasses import replace
from typing import Any

from clead.config import AttackConfig, EncoderConfig, EvaluationConfig, LinearEvalConfig, OptimizerConfig
from clead.methods.clead import CLead
from clead.methods.simclr import SimCLR
from clead.recipes.base import Recipe

_SHARED: dict[str, Any] = {
    "data": "cifar10",
    "encoder": EncoderConfig(name="resnet18"),
    "evaluation": EvaluationConfig(attacks=("fgsm", "pgd20", "cw"), eps=(8 / 255, 16 / 255)),
}

_CLEAD = CLead.Config(
    **_SHARED,
    augment="rrc_flip",
    epochs=200,
    batch_size=512,
    temperature=0.1,
    optimizer=OptimizerConfig(lr=0.4, weight_decay=5e-4, warmup_epochs=10),
    attack=AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10),
    linear_eval=LinearEvalConfig(optimizer=OptimizerConfig(name="adam", lr=1e-4, schedule="constant")),
)

RECIPES = (
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
    *(
        Recipe(
            f"clead{suffix}_cifar10",
            "clead",
            replace(_CLEAD, encoder=EncoderConfig(name=encoder)),
            "C-LEAD sections 3 and 4; epochs, weight decay, warm-up and the training attacks are not given there",
            f"C-LEAD table 1: FGSM, PGD, CW {numbers}",
        )
        for suffix, encoder, numbers in (
            ("", "resnet18", "25.78, 31.27, 21.55 (8/255) and 24.97, 27.61, 18.80 (16/255)"),
            ("_resnet34", "resnet34", "53.23, 61.01, 58.66 (8/255) and 49.16, 58.60, 51.79 (16/255)"),
            ("_resnet50", "resnet50", "55.28, 68.67, 59.85 (8/255) and 50.86, 57.56, 52.20 (16/255)"),
        )
    ),
)
