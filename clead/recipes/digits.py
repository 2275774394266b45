"""Recipes on scikit-learn's digits: minutes on two CPU cores, eps 0.15.

Measured on this data set: at 8/255 an undefended model keeps about 84%, so the radius of the papers shows nothing
here. All recipes take the same number of optimiser steps.
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
from clead.methods.a_acl import AACL
from clead.methods.a_rocl import ARoCL
from clead.methods.acl import ACL
from clead.methods.adaptive_fnc import AdaptiveFNC
from clead.methods.advcl import AdvCL
from clead.methods.ascl import ASCL
from clead.methods.ce import CrossEntropy
from clead.methods.clae import CLAE
from clead.methods.clead import CLead
from clead.methods.dynacl import DynACL
from clead.methods.fast_at import FastAdversarialTraining
from clead.methods.fnc import FNC
from clead.methods.ifnd import IFND
from clead.methods.mart import MART
from clead.methods.pgd_at import PGDAdversarialTraining
from clead.methods.plain import Plain
from clead.methods.rocl import RoCL
from clead.methods.simclr import SimCLR
from clead.methods.sup_con import SupCon
from clead.methods.trades import TRADES
from clead.methods.uel import UEL
from clead.models.batch_norm import BatchNormConfig
from clead.recipes.base import Recipe

_ATTACK = AttackConfig(eps=0.15, step_size=0.075, steps=5)
_FINETUNE: dict[str, Any] = {
    "epochs": 20,
    "augment": "digits",
    "optimizer": OptimizerConfig(lr=0.1, weight_decay=5e-4, schedule="step"),
}
_SHARED: dict[str, Any] = {
    "data": "digits",
    "augment": "digits",
    # A step is milliseconds: a second thread gains little when idle, and costs a lot when anything else runs.
    "threads": 1,
    "epochs": 60,
    "batch_size": 128,
    "encoder": EncoderConfig(name="digits_cnn"),
    "optimizer": OptimizerConfig(name="sgd", lr=0.1, weight_decay=5e-4, warmup_epochs=3),
    "linear_eval": LinearEvalConfig(epochs=60, optimizer=OptimizerConfig(name="adam", lr=0.03, schedule="cosine")),
    "adv_linear_eval": AdvFinetuneConfig(**_FINETUNE, attack=_ATTACK),
    "full_finetune": FinetuneConfig(**_FINETUNE),
    "adv_finetune": AdvFinetuneConfig(**_FINETUNE, attack=_ATTACK),
    "evaluation": EvaluationConfig(
        attacks=("fgsm", "pgd20", "cw"), eps=(0.1, 0.15), sweep_eps=(0.025, 0.05, 0.075, 0.125, 0.2, 0.25, 0.3)
    ),
}
_PROJECTOR = ProjectorConfig(hidden_dim=128, dim=64)
# As in the code of ACL and DynACL. Without batch norm on the embeddings ACL's adversarial stream collapses to one point
# at this radius: its loss ends at ln(255), PGD-20 accuracy at 8% instead of 64%.
_DUAL_STREAM: dict[str, Any] = {
    "projector": ProjectorConfig(hidden_dim=128, dim=64, layers=3, batch_norm="all"),
    "temperature": 0.5,
}
_TWO_BRANCHES = EncoderConfig("digits_cnn", BatchNormConfig(branches=("clean", "adv"), evaluation_branch="adv"))
_THREE_BRANCHES = EncoderConfig(
    "digits_cnn", BatchNormConfig(branches=("clean", "adv", "adv_ce"), evaluation_branch="adv")
)
_CLAE_BRANCHES = EncoderConfig(
    "digits_cnn", BatchNormConfig(branches=("clean", "adv"), evaluation_branch="clean", momentum=(0.1, 0.01))
)

RECIPES = (
    Recipe("ce_digits", "ce", CrossEntropy.Config(**_SHARED), "ours"),
    Recipe("pgd_at_digits", "pgd_at", PGDAdversarialTraining.Config(**_SHARED, attack=_ATTACK), "ours"),
    Recipe("trades_digits", "trades", TRADES.Config(**_SHARED, attack=_ATTACK), "ours"),
    Recipe("mart_digits", "mart", MART.Config(**_SHARED, attack=_ATTACK), "ours"),
    Recipe(
        "fast_at_digits",
        "fast_at",
        FastAdversarialTraining.Config(**_SHARED, attack=AttackConfig(eps=0.15, step_size=0.1875, steps=1)),
        "ours",
    ),
    Recipe("simclr_digits", "simclr", SimCLR.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2), "ours"),
    Recipe("sup_con_digits", "sup_con", SupCon.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2), "ours"),
    Recipe(
        "adaptive_fnc_digits",
        "adaptive_fnc",
        AdaptiveFNC.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2),
        "ours; thresholds as adaptive_fnc_cifar10",
    ),
    Recipe(
        "fnc_digits",
        "fnc",
        FNC.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2),
        "ours; rules as fnc_cifar10",
    ),
    Recipe(
        "ifnd_digits",
        "ifnd",
        IFND.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2),
        "ours; clusters and refresh as ifnd_cifar10",
    ),
    Recipe(
        "ascl_digits",
        "ascl",
        replace(
            ASCL.Config(**_SHARED, attack=_ATTACK, projector=_PROJECTOR, temperature=0.5),
            adv_augment="digits",
            contrastive_steps=3,
            encoder=_TWO_BRANCHES,
        ),
        "ours; weights and temperature as ascl_cifar10",
    ),
    Recipe(
        "clead_digits",
        "clead",
        replace(
            CLead.Config(**_SHARED, attack=_ATTACK, projector=_PROJECTOR),
            compare=("undefended", "random"),
        ),
        "ours; attacks, loss and temperature as clead_cifar10",
    ),
    Recipe("plain_digits", "plain", Plain.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2), "ours"),
    Recipe("uel_digits", "uel", UEL.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2), "ours"),
    Recipe(
        "clae_digits",
        "clae",
        CLAE.Config(
            **{**_SHARED, "encoder": _CLAE_BRANCHES},
            projector=_PROJECTOR,
            temperature=0.2,
            attack=AttackConfig(eps=0.05, step_size=0.05, steps=1, random_start=False),
        ),
        "ours; eps .05, as CLAE wants features and not robustness",
    ),
    Recipe(
        "rocl_digits",
        "rocl",
        RoCL.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2, attack=_ATTACK),
        "ours",
    ),
    Recipe(
        "acl_digits",
        "acl",
        ACL.Config(**{**_SHARED, "encoder": _TWO_BRANCHES}, **_DUAL_STREAM, attack=_ATTACK),
        "ours",
    ),
    Recipe(
        "advcl_digits",
        "advcl",
        AdvCL.Config(
            **{**_SHARED, "encoder": _THREE_BRANCHES},
            projector=_PROJECTOR,
            temperature=0.2,
            # That of the CIFAR recipe would multiply the loss, and with it this learning rate, by 2.9.
            base_temperature=0.2,
            attack=_ATTACK,
            adv_augment="digits",
            high_pass_radius=2.0,
            clusters=(2, 10, 50),
            refresh_epochs=20,
        ),
        "ours; a quarter of the radius of the high-frequency view, for images of a quarter of the size",
    ),
    Recipe(
        "a_rocl_digits",
        "a_rocl",
        ARoCL.Config(**_SHARED, projector=_PROJECTOR, temperature=0.2, attack=_ATTACK),
        "ours; as rocl_digits, thresholds as a_rocl_cifar10",
    ),
    Recipe(
        "a_acl_digits",
        "a_acl",
        AACL.Config(**{**_SHARED, "encoder": _TWO_BRANCHES}, **_DUAL_STREAM, attack=_ATTACK),
        "ours; as acl_digits, thresholds as a_acl_cifar10",
    ),
    Recipe(
        "dynacl_digits",
        "dynacl",
        DynACL.Config(**{**_SHARED, "encoder": _TWO_BRANCHES}, **_DUAL_STREAM, attack=_ATTACK),
        "ours; as acl_digits, stages, weights and momentum as dynacl_cifar10",
    ),
)
