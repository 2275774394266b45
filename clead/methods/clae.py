"""CLAE: contrastive learning with adversarial examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clead.attacks import Constraint
from clead.attacks.one_step import rfgsm
from clead.config import AttackConfig, ContrastiveConfig, Real, require
from clead.errors import UserError
from clead.losses import uel_loss
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model, Pass
from clead_kernels import info_nce, nt_xent


class CLAE(ContrastiveMethod["CLAE.Config"]):
    """A contrastive loss on two views plus alpha times the same loss between a view and its adversarial version.

    Ho & Vasconcelos, "Contrastive learning with adversarial examples", NeurIPS 2020, arXiv:2010.12050, eq. 10 and
    algorithm 1, for the losses Plain, UEL and SimCLR. It aims at better features, not at robustness. As its code has
    it:

    - The attack starts from the view x itself and ascends the loss between f(x) and f(x + d). At d = 0 the cosine of a
      positive pair is stationary, so without a random start only the negatives say where to go.
    - During the attack batch norm is in train mode, both images in the branch ``adv``, whose running statistics have a
      smaller momentum in the recipes; unlike there, they do not move. Evaluation uses the branch ``clean``.
    - The images it perturbs are normalised by a standard deviation, and not clipped: ``channel_scale`` is that
      deviation and multiplies eps, and ``clip`` is off.
    - R-FGSM (``random_signs``) walks half of the radius along random signs first, then the other half by FGSM.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """CLAE."""

        base: Literal["simclr", "plain", "uel"] = "simclr"
        """The contrastive loss."""
        attack: AttackConfig = AttackConfig(eps=0.03, step_size=0.03, steps=1, random_start=False)
        """FGSM; with a random start and 5/4 of the step F-FGSM; with several steps PGD."""
        random_signs: bool = False
        """R-FGSM: half of eps along random signs, then half of it by one gradient."""
        channel_scale: tuple[Real, ...] = ()
        """Factor on eps and step per channel; empty means 1."""
        clip: bool = False
        """Keep perturbed images in [0, 1]."""
        alpha: Real = 1.0
        """Weight of the adversarial term."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.alpha >= 0, "alpha", "at least 0", self.alpha)
            require(all(value > 0 for value in self.channel_scale), "channel_scale", "above 0", self.channel_scale)
            fgsm = not self.attack.random_start and self.attack.norm == "linf" and self.attack.steps == 1
            fgsm = fgsm and self.attack.step_size == self.attack.eps
            require(not self.random_signs or fgsm, "random_signs", "off where attack is not FGSM", self.random_signs)

    paper = "Ho & Vasconcelos, NeurIPS 2020, arXiv:2010.12050"
    ops = ("nt_xent", "info_nce", "pgd_step_", "random_start_")

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 10: L(z_1, z_2) + alpha L(z_1, z_adv)."""
        views = self.views(batch)
        size = len(batch.images)
        x_adv = self.adversary(model, views[:size], batch)
        streams = ((self.clean_branch, 2 * size), (self.adv_branch, size))
        z_1, z_2, z_adv = model.embed(torch.cat([views, x_adv]), branch=streams).chunk(3)
        return {"clean": self.contrast(z_1, z_2).mean(), "adv": self.config.alpha * self.contrast(z_1, z_adv).mean()}

    def check_images(self, images: Tensor) -> None:
        """Refuse a ``channel_scale`` of other channels too."""
        super().check_images(images)
        self.scale(images)

    def adversary(self, model: Model, x: Tensor, batch: Batch) -> Tensor:
        """x + d [B, C, H, W] of large loss against x."""
        config = self.config
        embed, bounds, scale = Pass("embed", self.adv_branch), (0.0, 1.0) if config.clip else None, self.scale(x)
        anchors = self.constant(model, embed, x, training=True)

        def loss(z: Tensor) -> Tensor:
            return self.contrast(anchors, z)

        rng = batch.rng("attack")
        if config.random_signs:
            objective = self.inner.objective(model, embed, loss, x, training=True)
            ball = Constraint("linf", config.attack.eps * scale, bounds)
            return rfgsm(objective, x, constraint=ball, rng=rng, impl=config.impl)
        return self.perturb(model, embed, loss, x, config.attack, rng, training=True, bounds=bounds, scale=scale)

    def scale(self, x: Tensor) -> Tensor:
        """``channel_scale`` as a tensor [1, C, 1, 1] like x, or [1, 1, 1, 1] of a one."""
        scale = self.config.channel_scale or (1.0,)
        if self.config.channel_scale and len(scale) != x.shape[1]:
            values = "1 value" if x.shape[1] == 1 else f"{x.shape[1]} values, one per channel"
            raise UserError(f"channel_scale must hold {values}, got {scale}")
        return torch.tensor(scale, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)

    def contrast(self, anchors: Tensor, others: Tensor) -> Tensor:
        """The base's loss of every image, [B], between two sets of embeddings [B, d]."""
        temperature, impl = self.config.temperature, self.config.impl
        if self.config.base == "plain":
            return info_nce(anchors, others, temperature=temperature, reduction="none", impl=impl)
        loss = {"simclr": nt_xent, "uel": uel_loss}[self.config.base]
        both = loss(torch.cat([anchors, others]), temperature=temperature, reduction="none", impl=impl)
        return both.view(2, -1).mean(0)

    @property
    def op_features(self) -> dict[str, str]:
        """UEL has a second term."""
        return {"spread": "yes" if self.config.base == "uel" else "no"}

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the views and that of the adversarial images."""
        return (self.clean_branch, self.adv_branch)

    @property
    def selected_on_test(self) -> tuple[str, ...]:
        """The classifiers, and on all bases but SimCLR the encoder."""
        classifiers = ("linear_eval", "logistic_regression")
        return classifiers if self.config.base == "simclr" else ("pretrain", *classifiers)
