"""Recipes on CIFAR-10 of the ASCL paper: its tables 1 and 4 to 8, and eq. 8.

Li et al., "Adversarial supervised contrastive learning", Machine Learning 112 (2023), 10.1007/s10994-022-06269-7.
"""

from dataclasses import replace
from typing import Any

from clead.config import (
    AdvFinetuneConfig,
    AttackConfig,
    EncoderConfig,
    EvaluationConfig,
    FinetuneConfig,
    LinearEvalConfig,
    OptimizerConfig,
    ProjectorConfig,
)
from clead.methods.ascl import ASCL
from clead.recipes.base import Recipe

_SOURCE = (
    "ASCL section 4.1; attack steps, temperature, projector and augmentation, not given there, as AdvCL; "
    "epochs and the augmentation of fine-tuning ours"
)
_FINETUNE: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 512,
    "augment": "crop_flip",
    "zero_init": True,
    "optimizer": OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="constant"),
}
_ATTACK = AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10)
_ADVERSARIAL = AdvFinetuneConfig(**_FINETUNE, loss="trades", beta=6.0, attack=_ATTACK)
_FULL = ASCL.Config(
    data="cifar10",
    augment="supcon",
    adv_augment="crop_flip",
    epochs=200,
    batch_size=512,
    temperature=0.5,
    encoder=EncoderConfig("resnet18", replace(EncoderConfig().bn, branches=("clean", "adv"), evaluation_branch="adv")),
    projector=ProjectorConfig(hidden_dim=512, dim=128),
    optimizer=OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="step"),
    attack=_ATTACK,
    contrastive_steps=5,
    linear_eval=LinearEvalConfig(**_FINETUNE),
    adv_linear_eval=_ADVERSARIAL,
    full_finetune=FinetuneConfig(**_FINETUNE),
    adv_finetune=_ADVERSARIAL,
    evaluation=EvaluationConfig(attacks=("pgd20",), eps=(8 / 255, 16 / 255)),
    stages=("pretrain", "adv_linear_eval", "evaluate"),
)


def _row(name: str, paper: str, **changes: Any) -> Recipe:
    return Recipe(name, "ascl", replace(_FULL, **changes), _SOURCE, paper)


RECIPES = (
    _row(
        "ascl_cifar10",
        "ASCL tables 1 and 7, linear on attacked images: clean 81.67, PGD-20 53.09 (8/255) and 23.01 (16/255), "
        "AutoAttack 45.7; linear: 81.35, 52.38 (table 4; table 7 repeats AdvCL's row); full: 92.06, 0.21, 0; "
        "full on attacked images: 85.4, 47.02, 15.8",
        stages=("pretrain", "linear_eval", "adv_linear_eval", "full_finetune", "adv_finetune", "evaluate"),
    ),
    _row(
        "ascl_at_only_cifar10",
        "ASCL table 5: clean 79.74, PGD-20 40.51, AutoAttack 36.74",
        cl_weight=0.0,
        ascl_weight=0.0,
    ),
    _row("ascl_at_cl_cifar10", "ASCL table 5: clean 76.97, PGD-20 48.1, AutoAttack 42.52", ascl_weight=0.0),
    _row("ascl_at_sup_cl_cifar10", "ASCL table 5: clean 81.5, PGD-20 48.09, AutoAttack 42.46", cl_weight=0.0),
    _row(
        "ascl_label_based_cifar10",
        "ASCL table 6: clean 81.5, PGD-20 48.09 (8/255) and 17.75 (16/255)",
        perturbations="label_based",
    ),
    _row(
        "ascl_label_free_cifar10",
        "ASCL table 6: clean 80.12, PGD-20 50.93 (8/255) and 21.81 (16/255)",
        perturbations="label_free",
    ),
    _row("ascl_same_bn_cifar10", "ASCL table 8: clean 80.06, PGD-20 50.15", encoder=EncoderConfig("resnet18")),
    _row("ascl_eq8_cifar10", "ASCL section 3.2.1 advises against it, without a number", pairs="adv_adv"),
)
