"""C-LEAD: contrastive learning for enhanced adversarial defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from clead.config import AttackConfig, ContrastiveConfig, Real, require
from clead.losses import Negatives, clead_loss, clead_term
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Branch, Model, Pass
from clead_kernels import instance_margin

Attack = Literal["fgsm", "pgd", "cw"]


class CLead(ContrastiveMethod["CLead.Config"]):
    """InfoNCE between every view and its PGD and CW versions; no labels.

    Ghosh et al., "C-LEAD: Contrastive Learning for Enhanced Adversarial Defense", arXiv:2510.27249, eq. 2 and
    algorithm 1. What the paper leaves open is settled as follows: all attacks start from the view itself, or with
    ``independent_views`` from a second view of the same image, and need no labels; PGD and FGSM ascend the InfoNCE term
    they will be trained on, FGSM in one step of eps without a random start; CW ascends the instance margin max_{j != i}
    s_ij - s_ii inside the same linf ball (the paper indexes CW by eps, so it must be bounded by eps), or inside an l2
    ball; the anchors are fixed during the attack, batch norm is in eval mode, and one set of batch-norm statistics
    serves all streams unless the encoder has an ``adv`` branch.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """C-LEAD."""

        temperature: Real = 0.1
        """Softmax temperature of the contrastive loss."""
        attacks: tuple[Attack, ...] = ("pgd", "cw")
        """Attacks whose images are trained on, one term each."""
        attack: AttackConfig = AttackConfig()
        """The inner maximisation of all of them but an l2 CW."""
        negatives: Negatives = "same_attack"
        """Other images under the same attack, under every attack and clean, or clean alone."""
        independent_views: bool = False
        """Perturb a second augmented view instead of the one that is contrasted with."""
        cw: Literal["linf", "l2"] = "linf"
        """The ball of CW: that of ``attack``, or that of ``cw_l2``."""
        cw_l2: AttackConfig = AttackConfig(norm="l2", eps=0.5, step_size=0.125)
        """The inner maximisation of CW for ``cw="l2"``."""

        def __post_init__(self) -> None:
            super().__post_init__()
            different = self.attacks != () and len(set(self.attacks)) == len(self.attacks)
            require(different, "attacks", "one or more different ones of fgsm, pgd, cw", self.attacks)
            # Where nothing is perturbed yet, the cosine of a view with itself is at its maximum: no gradient.
            blind = "fgsm" in self.attacks and self.negatives == "clean" and not self.independent_views
            require(not blind, "negatives", "same_attack or all_views with fgsm on the same view", self.negatives)
            require(self.cw_l2.norm == "l2", "cw_l2.norm", "l2", self.cw_l2.norm)

    paper = "Ghosh et al., arXiv:2510.27249"
    ops = ("info_nce", "instance_margin", "pgd_step_", "random_start_")

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2: the mean of the terms of all attacks."""
        x = self.augment(batch.images, batch.rng("augment"))
        start = self.augment(batch.images, batch.rng("augment", 1)) if self.config.independent_views else x
        perturbed = self.perturbations(model, x, start, batch)
        embeddings = model.embed(torch.cat([x, *perturbed.values()]), branch=self._streams(len(x), len(perturbed)))
        original, *others = embeddings.split(len(x))
        return clead_loss(
            original,
            dict(zip(perturbed, others, strict=True)),
            temperature=self.config.temperature,
            negatives=self.config.negatives,
            impl=self.config.impl,
        )

    def perturbations(self, model: Model, x: Tensor, start: Tensor, batch: Batch) -> dict[Attack, Tensor]:
        """``start`` [B, C, H, W], a view of the images of x, under every attack against x, [B, C, H, W] each."""
        config = self.config
        anchors = self.constant(model, Pass("embed", self.clean_branch), x)

        def term(z: Tensor) -> Tensor:
            return clead_term(
                anchors,
                z,
                temperature=config.temperature,
                negatives=config.negatives,
                reduction="none",
                impl=config.impl,
            )

        def margin(z: Tensor) -> Tensor:
            return instance_margin(anchors, z, temperature=config.temperature, impl=config.impl)

        one_step = replace(config.attack, steps=1, step_size=config.attack.eps, random_start=False)
        inner: dict[Attack, tuple[Callable[[Tensor], Tensor], AttackConfig, int]] = {
            "pgd": (term, config.attack, 0),
            "cw": (margin, config.attack if config.cw == "linf" else config.cw_l2, 1),
            "fgsm": (term, one_step, 2),
        }
        x_adv = {}
        for name in config.attacks:
            loss, attack, stream = inner[name]
            rng = batch.rng("attack", stream)
            x_adv[name] = self.perturb(model, Pass("embed", self.adv_branch), loss, start, attack, rng)
        return x_adv

    @property
    def op_features(self) -> dict[str, str]:
        """Clean negatives leave the view itself out."""
        return {"self_index": "yes" if self.config.negatives == "clean" else "no"}

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the clean and that of the adversarial stream."""
        return (self.clean_branch, self.adv_branch)

    def _streams(self, size: int, attacks: int) -> Branch:
        clean = self.clean_branch
        if self.adv_branch == clean:
            return clean
        return ((clean, size), (self.adv_branch, size * attacks))
