"""Recipes on CIFAR-10 of the adaptive-FNC paper: the rows of its table 4.

Gupta et al., "Contrastive self-supervised learning leads to higher adversarial susceptibility", AAAI 2023,
arXiv:2207.10862. Its clean accuracies are those of the SupContrast code, whose settings these are.
"""

from typing import Any

from clead.config import EncoderConfig, EvaluationConfig, LinearEvalConfig, OptimizerConfig, ProjectorConfig
from clead.methods.adaptive_fnc import AdaptiveFNC
from clead.methods.fnc import FNC
from clead.methods.ifnd import IFND
from clead.methods.simclr import SimCLR
from clead.methods.sup_con import SupCon
from clead.recipes.base import Recipe

_SOURCE = "settings of the official SupContrast code (github.com/HobbitLong/SupContrast); the paper averages 5 runs"


def _numbers(clean: float, fgsm: tuple[float, float], autoattack: tuple[float, float]) -> str:
    return (
        f"adaptive-FNC table 4: clean {clean}, FGSM {fgsm[0]} (8/255) and {fgsm[1]} (16/255), "
        f"AutoAttack {autoattack[0]} (1/255) and {autoattack[1]} (2/255)"
    )


_NOT_PRINTED = "ablated in adaptive-FNC section 5.1, numbers not printed"


def _settings(temperature: float, linear_lr: float) -> dict[str, Any]:
    # The code multiplies its loss by temperature / 0.07, which SGD cannot tell from this factor on its learning rate
    # together with the inverse on its weight decay.
    factor = temperature / 0.07
    return {
        "data": "cifar10",
        "augment": "supcon",
        "epochs": 1000,
        "batch_size": 1024,
        "temperature": temperature,
        "encoder": EncoderConfig(name="resnet50"),
        "projector": ProjectorConfig(hidden_dim=2048, dim=128),
        "optimizer": OptimizerConfig(
            lr=0.5 * factor,
            weight_decay=1e-4 / factor,
            final_lr=0.5e-3 * factor,
            warmup_epochs=10,
            warmup_lr=0.01 * factor,
        ),
        "linear_eval": LinearEvalConfig(
            epochs=100,
            batch_size=512,
            augment="rrc_flip",
            optimizer=OptimizerConfig(lr=linear_lr, schedule="step", milestones=(0.6, 0.75, 0.9), gamma=(0.2,)),
        ),
        "evaluation": EvaluationConfig(attacks=("fgsm", "pgd20"), eps=(1 / 255, 2 / 255, 8 / 255, 16 / 255)),
    }


def _adaptive(name: str, start: float, end: float, numbers: str) -> Recipe:
    config = AdaptiveFNC.Config(**_settings(temperature=0.5, linear_lr=1.0), threshold_start=start, threshold_end=end)
    return Recipe(name, "adaptive_fnc", config, _SOURCE, numbers)


RECIPES = (
    Recipe(
        "sup_con_cifar10",
        "sup_con",
        SupCon.Config(**_settings(0.1, linear_lr=5.0)),
        _SOURCE,
        _numbers(95.5, (38.8, 31.8), (24.3, 11.5)),
    ),
    Recipe(
        "simclr_resnet50_cifar10",
        "simclr",
        SimCLR.Config(**_settings(temperature=0.5, linear_lr=1.0)),
        _SOURCE,
        _numbers(92.7, (26.8, 13.4), (13.7, 4.3)),
    ),
    _adaptive("adaptive_fnc_cifar10", 0.99, 0.7, _numbers(93.5, (33.6, 24.9), (19.3, 8.7))),
    _adaptive("adaptive_fnc_099_05_cifar10", 0.99, 0.5, _NOT_PRINTED),
    _adaptive("adaptive_fnc_09_07_cifar10", 0.9, 0.7, _NOT_PRINTED),
    _adaptive("adaptive_fnc_09_05_cifar10", 0.9, 0.5, _numbers(93.2, (31.3, 21.6), (19.1, 8.6))),
    _adaptive("adaptive_fnc_09_fixed_cifar10", 0.9, 0.9, _numbers(93.1, (30.1, 21.3), (17.4, 7.5))),
    Recipe(
        "fnc_cifar10",
        "fnc",
        FNC.Config(**_settings(temperature=0.5, linear_lr=1.0)),
        f"{_SOURCE}; FNC as that paper describes it, threshold and k of the official FNC code",
        _numbers(94.9, (28.6, 16.3), (14.7, 6.6)),
    ),
    Recipe(
        "fnc_attract_cifar10",
        "fnc",
        FNC.Config(**_settings(temperature=0.5, linear_lr=1.0), combine="and", treatment="attract"),
        f"{_SOURCE}; FNC's rule as in its official code, without its memory and support views",
    ),
    Recipe(
        "ifnd_cifar10",
        "ifnd",
        IFND.Config(**_settings(temperature=0.5, linear_lr=1.0)),
        f"{_SOURCE}; the numbers of clusters and the refresh are ours, IFND's code was not to be had",
        _numbers(95.1, (29.2, 18.8), (15.1, 7.1)),
    ),
)
