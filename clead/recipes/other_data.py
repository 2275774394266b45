"""Recipes off CIFAR-10: rows of tables on CIFAR-100 and Tiny-ImageNet, and classifiers transferred to other images.

A transferred row pre-trains on CIFAR-10 as its recipe there does, then trains a linear classifier on attacked images of
the target (ASCL table 3). The target's images come in CIFAR's size.
"""

from dataclasses import replace
from typing import Any

from clead.config import EncoderConfig
from clead.recipes import adversarial_contrastive, ascl, cifar10, false_negatives, supervised
from clead.recipes.base import Recipe

_CIFAR10 = {
    recipe.name: recipe
    for module in (cifar10, supervised, false_negatives, adversarial_contrastive, ascl)
    for recipe in module.RECIPES
}


def _on(data: str, name: str, paper: str, **changes: Any) -> Recipe:
    """The CIFAR-10 recipe ``name`` with other data."""
    recipe = _CIFAR10[name]
    return Recipe(
        name.replace("cifar10", data),
        recipe.method,
        replace(recipe.config, data=data, **changes),
        f"as {name}: {recipe.source}",
        paper,
    )


def _to(target: str, method: str, paper: str) -> Recipe:
    """The recipe ``<method>_cifar10`` with its classifier on ``target``; ASCL's fine-tuning for all methods."""
    recipe, ours = _CIFAR10[f"{method}_cifar10"], _CIFAR10["ascl_cifar10"].config
    config = replace(
        recipe.config,
        adv_linear_eval=replace(ours.adv_linear_eval, data=target),
        stages=("pretrain", "adv_linear_eval", "evaluate"),
        evaluation=ours.evaluation,
    )
    return Recipe(f"{method}_cifar10_to_{target}", method, config, f"as {recipe.name}; ASCL section 4.3.1", paper)


def _table1(row: str, cifar100: tuple[float, float], tiny_imagenet: float) -> tuple[Recipe, Recipe]:
    """CLAE's rows; on Tiny-ImageNet the images are 224 wide and meet the encoder of ImageNet."""
    bn = _CIFAR10[row].config.encoder.bn
    large = {"image_size": 224, "encoder": EncoderConfig("resnet18_imagenet", bn)}
    knn, linear = cifar100
    return (
        _on("cifar100", row, f"CLAE table 1: kNN {knn}, logistic regression {linear}"),
        _on("tiny_imagenet", row, f"CLAE table 1: logistic regression {tiny_imagenet}", **large),
    )


def _fnc(clean: float, fgsm8: float, fgsm16: float, autoattack: float) -> str:
    return (
        f"adaptive-FNC table 1: clean {clean}, FGSM {fgsm8} (8/255) and {fgsm16} (16/255), AutoAttack {autoattack} "
        "(1/255)"
    )


def _table3(target: str, clean: float, pgd: float) -> str:
    return f"ASCL table 3, CIFAR-10 to {target}: clean {clean}, PGD-20 {pgd}"


RECIPES = (
    *_table1("plain_cifar10", (54.73, 51.82), 31.71),
    *_table1("uel_cifar10", (55.23, 52.99), 32.32),
    *_table1("clae_plain_cifar10", (55.28, 52.04), 32.82),
    *_table1("clae_plain_07_cifar10", (54.96, 52.14), 32.71),
    *_table1("clae_uel_cifar10", (55.96, 54.27), 33.72),
    *_table1("clae_uel_07_cifar10", (55.36, 53.90), 33.16),
    *_table1("simclr_cifar10", (34.94, 53.79), 40.11),
    *_table1("clae_cifar10", (38.89, 55.52), 41.62),
    *_table1("clae_simclr_07_cifar10", (38.41, 54.96), 41.46),
    _on("cifar100", "sup_con_cifar10", _fnc(76.3, 12.6, 6.7, 11.9)),
    _on("cifar100", "simclr_resnet50_cifar10", _fnc(68.9, 9.4, 3.0, 8.7)),
    _on("stl10", "pgd_at_cifar10", "ASCL table 3, one-shot: clean 54.7, PGD-20 30.45", image_size=32),
    _on("cifar100", "pgd_at_cifar10", "ASCL table 3, one-shot: clean 47.59, PGD-20 17.63"),
    _to("stl10", "rocl", _table3("STL-10", 54.56, 28.18)),
    _to("stl10", "acl", _table3("STL-10", 55.81, 31.8)),
    _to("stl10", "ascl", _table3("STL-10", 65.75, 37.85)),
    _to("cifar100", "rocl", _table3("CIFAR-100", 45.84, 15.33)),
    _to("cifar100", "acl", _table3("CIFAR-100", 47.13, 18.69)),
    _to("cifar100", "ascl", _table3("CIFAR-100", 50.47, 23.66)),
)
