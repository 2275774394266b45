"""Recipes on CIFAR-10 of CLAE and its bases, RoCL, ACL and AdvCL, by their official codes."""

from dataclasses import fields, replace
from typing import Any, Literal

from clead.config import (
    AdvFinetuneConfig,
    AttackConfig,
    EncoderConfig,
    EvaluationConfig,
    KNNConfig,
    LinearEvalConfig,
    LogisticRegressionConfig,
    OptimizerConfig,
    ProjectorConfig,
    TrainConfig,
)
from clead.methods.a_acl import AACL
from clead.methods.a_rocl import ARoCL
from clead.methods.acl import ACL
from clead.methods.advcl import AdvCL
from clead.methods.clae import CLAE
from clead.methods.dynacl import DynACL
from clead.methods.plain import Plain
from clead.methods.rocl import RoCL
from clead.methods.uel import UEL
from clead.models.batch_norm import BatchNormConfig
from clead.recipes.base import Recipe

_EVALUATION = EvaluationConfig(attacks=("fgsm", "pgd20"), eps=(8 / 255, 16 / 255))
_LOGISTIC = LinearEvalConfig(
    epochs=1000, batch_size=256, optimizer=OptimizerConfig(name="adam", lr=3e-4, schedule="constant")
)
_TWO = BatchNormConfig(branches=("clean", "adv"), evaluation_branch="clean", momentum=(0.1, 0.01))

_SEPARATE = BatchNormConfig(branches=("clean", "adv"), evaluation_branch="adv")

# CLAE's Plain and UEL: a linear embedding; of 301 epochs, 10%, 5% and 1% of the rate from 120, 160 and 200 on.
_INSTANCE: dict[str, Any] = {
    "data": "cifar10",
    "augment": "instance",
    "epochs": 301,
    "batch_size": 128,
    "temperature": 0.1,
    "encoder": EncoderConfig("resnet18"),
    "projector": ProjectorConfig(dim=128, layers=1),
    "optimizer": OptimizerConfig(
        lr=0.03,
        weight_decay=5e-4,
        schedule="step",
        milestones=(120 / 301, 160 / 301, 200 / 301),
        gamma=(0.1, 0.5, 0.2),
    ),
    # The code measures the embedding itself: neighbours and a logistic regression.
    "linear_eval": replace(_LOGISTIC, batch_size=128),
    "knn": KNNConfig(on=("embeddings",)),
    "logistic_regression": LogisticRegressionConfig(on=("embeddings",)),
    "evaluation": _EVALUATION,
}
_SIMCLR: dict[str, Any] = {
    "data": "cifar10",
    "augment": "simclr",
    "epochs": 100,
    "batch_size": 256,
    "temperature": 0.5,
    "encoder": EncoderConfig("resnet18"),
    "projector": ProjectorConfig(hidden_dim=512, dim=64),
    "optimizer": OptimizerConfig(name="adam", lr=3e-4, schedule="constant"),
    "linear_eval": _LOGISTIC,
    "knn": KNNConfig(on=("embeddings",), temperature=0.5),
    "logistic_regression": LogisticRegressionConfig(on=("features",), batch_size=256),
    "evaluation": _EVALUATION,
}
_CLAE_CODE = "CLAE's official code (github.com/chihhuiho/CLAE)"
# Their eps is in units of the normalised images: these are the standard deviations that they are divided by.
_CIFAR_STD, _HALF = (0.2023, 0.1994, 0.2010), (0.5, 0.5, 0.5)

# The defaults of ACL's code, which fine-tunes for 25 epochs.
_FINE_TUNING = LinearEvalConfig(
    epochs=25,
    batch_size=128,
    optimizer=OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="step", milestones=(15 / 25, 20 / 25)),
)

_SLOW_TUNING = LinearEvalConfig(
    epochs=25,
    batch_size=512,
    optimizer=OptimizerConfig(lr=0.01, weight_decay=2e-4, schedule="step", milestones=(10 / 25, 20 / 25)),
)


def _clae(
    name: str, settings: dict[str, Any], base: Literal["simclr", "plain", "uel"], eps: float, paper: str
) -> Recipe:
    config = CLAE.Config(
        **{**settings, "encoder": EncoderConfig("resnet18", _TWO)},
        base=base,
        attack=AttackConfig(eps=eps, step_size=eps, steps=1, random_start=False),
        channel_scale=_HALF if base == "simclr" else _CIFAR_STD,
    )
    return Recipe(name, "clae", config, _CLAE_CODE, paper)


def _table1(knn: float, linear: float) -> str:
    return f"CLAE table 1: kNN {knn}, logistic regression {linear}"


def _acl(bn: BatchNormConfig) -> ACL.Config:
    return ACL.Config(
        data="cifar10",
        augment="acl",
        epochs=1000,
        batch_size=512,
        temperature=0.5,
        encoder=EncoderConfig("resnet18", bn),
        projector=ProjectorConfig(hidden_dim=512, dim=512, layers=3, batch_norm="all"),
        optimizer=OptimizerConfig("lars", lr=5.0, weight_decay=1e-6, warmup_epochs=10),
        attack=AttackConfig(eps=8 / 255, step_size=2 / 255, steps=5),
        linear_eval=_FINE_TUNING,
        adv_finetune=AdvFinetuneConfig(augment="crop_flip"),
        stages=("pretrain", "linear_eval", "adv_finetune", "evaluate"),
        evaluation=EvaluationConfig(attacks=("pgd20",), eps=(8 / 255, 16 / 255)),
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _augmented(method: Literal["a_rocl", "a_acl"], config: RoCL.Config | ACL.Config, paper: str) -> Recipe:
    """The configuration with adaptive false-negative cancellation."""
    own = {"a_rocl": ARoCL.Config, "a_acl": AACL.Config}[method]
    source = f"as {method.removeprefix('a_')}_cifar10; thresholds as the adaptive-FNC paper's, which gives no others"
    return Recipe(f"{method}_cifar10", method, own(**_settings(config)), source, paper)


_ROCL_LINEAR = OptimizerConfig(lr=0.1, weight_decay=5e-4, schedule="step", milestones=(30 / 150, 50 / 150, 100 / 150))
_ROCL = RoCL.Config(
    data="cifar10",
    augment="rocl",
    epochs=1000,
    batch_size=512,
    temperature=0.5,
    encoder=EncoderConfig("resnet18"),
    projector=ProjectorConfig(hidden_dim=2048, dim=128),
    # 15 times the base rate 0.1, where the warm-up of the code ends.
    optimizer=OptimizerConfig("lars", lr=1.5, weight_decay=1e-6, warmup_epochs=10),
    attack=AttackConfig(eps=0.0314, step_size=0.007, steps=7),
    linear_eval=LinearEvalConfig(epochs=150, batch_size=1024, optimizer=_ROCL_LINEAR),
    adv_linear_eval=AdvFinetuneConfig(
        epochs=150,
        batch_size=1024,
        optimizer=_ROCL_LINEAR,
        zero_init=False,
        loss="ce",
        attack=AttackConfig(eps=0.0314, step_size=0.007, steps=10),
    ),
    stages=("pretrain", "linear_eval", "adv_linear_eval", "evaluate"),
    evaluation=EvaluationConfig(attacks=("pgd20",), eps=(8 / 255, 16 / 255)),
)
_ACL_CODE = "ACL's official code (github.com/VITA-Group/Adversarial-Contrastive-Learning), its dual stream"
_ROCL_CODE = "RoCL's official code (github.com/Kim-Minseon/RoCL)"

RECIPES = (
    Recipe("plain_cifar10", "plain", Plain.Config(**_INSTANCE), _CLAE_CODE, _table1(82.78, 79.65)),
    Recipe("uel_cifar10", "uel", UEL.Config(**_INSTANCE), _CLAE_CODE, _table1(83.63, 80.63)),
    _clae("clae_cifar10", _SIMCLR, "simclr", 0.03, _table1(76.45, 83.32)),
    _clae("clae_simclr_07_cifar10", _SIMCLR, "simclr", 0.07, _table1(76.70, 83.13)),
    _clae("clae_plain_cifar10", _INSTANCE, "plain", 0.03, _table1(83.09, 79.94)),
    _clae("clae_plain_07_cifar10", _INSTANCE, "plain", 0.07, _table1(83.04, 79.85)),
    _clae("clae_uel_cifar10", _INSTANCE, "uel", 0.03, _table1(84.00, 80.94)),
    _clae("clae_uel_07_cifar10", _INSTANCE, "uel", 0.07, _table1(83.72, 80.82)),
    Recipe(
        "rocl_cifar10",
        "rocl",
        _ROCL,
        _ROCL_CODE,
        "RoCL's README: linear 83.71, PGD-20 40.27; adversarial linear 80.43, 47.69; ASCL table 1: AutoAttack 28.38",
    ),
    Recipe(
        "acl_cifar10",
        "acl",
        _acl(_SEPARATE),
        _ACL_CODE,
        "ASCL tables 1 and 4: linear evaluation clean 79.76, PGD-20 30.31; adversarial fine-tuning 82.19, 52.82",
    ),
    Recipe(
        "advcl_cifar10",
        "advcl",
        AdvCL.Config(
            data="cifar10",
            augment="supcon",
            adv_augment="crop_flip",
            epochs=1000,
            batch_size=512,
            temperature=0.5,
            encoder=EncoderConfig(
                "resnet18", BatchNormConfig(branches=("clean", "adv", "adv_ce"), evaluation_branch="adv")
            ),
            # The batch norm of the code's projector has one scale and shift for all streams.
            projector=ProjectorConfig(hidden_dim=512, dim=128, batch_norm="hidden"),
            optimizer=OptimizerConfig(lr=0.5, weight_decay=1e-4, warmup_epochs=10, warmup_lr=0.01, final_lr=5e-4),
            attack=AttackConfig(eps=8 / 255, step_size=2 / 255, steps=5),
            linear_eval=LinearEvalConfig(
                epochs=25,
                batch_size=512,
                optimizer=OptimizerConfig(lr=0.01, weight_decay=2e-4, schedule="step", milestones=(15 / 25, 20 / 25)),
            ),
            evaluation=EvaluationConfig(attacks=("pgd20",), eps=(8 / 255, 16 / 255)),
        ),
        "AdvCL's official code (github.com/LijieFan/AdvCL); its clusters come from a network trained on ImageNet",
        "ASCL tables 1 and 4: linear evaluation clean 80.85, PGD-20 50.45; adversarial 79.39, 52.01, AutoAttack 43.52",
    ),
    Recipe("acl_same_bn_cifar10", "acl", _acl(BatchNormConfig()), _ACL_CODE, "ASCL table 8: clean 75.15, PGD-20 35.6"),
    _augmented("a_rocl", _ROCL, "adaptive-FNC table 5 (encoder not said): clean 87.9, PGD 45.9 (8/255), 13.2 (16/255)"),
    _augmented(
        "a_acl", _acl(_SEPARATE), "adaptive-FNC table 5 (encoder not said): clean 87.9, PGD 42.5 (8/255), 13.2 (16/255)"
    ),
    Recipe(
        "dynacl_cifar10",
        "dynacl",
        DynACL.Config(**_settings(replace(_acl(_SEPARATE), linear_eval=_SLOW_TUNING))),
        "DynACL's official code (github.com/PKU-ML/DYNACL), without its second stage DynACL++",
        "the code's released weights by its issue 1: linear evaluation clean 75.39, AutoAttack 45.05",
    ),
)
