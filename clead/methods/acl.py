"""ACL: adversarial contrastive learning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clead.config import AttackConfig, ContrastiveConfig
from clead.losses import cancelled_nt_xent
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model, Pass
from clead_kernels import FalseNegatives


class ACL(ContrastiveMethod["ACL.Config"]):
    """NT-Xent between two views, and between their adversarial versions: the dual stream; no labels.

    Jiang et al., "Robust pre-training by adversarial contrastive learning", NeurIPS 2020, arXiv:2010.13337, eq. 5:

        L = 1/2 [ L_NT(t, t'; clean batch norm) + max_{d, d'} L_NT(t + d, t' + d'; adversarial batch norm) ]

    As in the official code both views are perturbed together, the attack runs with batch norm in eval mode in the
    branch ``adv``, batch norm inside the projector has the same branches, and ``adv`` is evaluated. With a single
    branch both streams share it (table 8 of the ASCL paper).
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """ACL."""

        attack: AttackConfig = AttackConfig(steps=5)

    paper = "Jiang et al., NeurIPS 2020, arXiv:2010.13337"
    ops = ("nt_xent", "pgd_step_", "random_start_")

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 5, both streams in one forward pass."""
        views = self.views(batch)
        cancelled = self.cancelled(model, views, batch)
        x_adv = self.adversaries(model, views, batch, cancelled)
        streams = ((self.clean_branch, len(views)), (self.adv_branch, len(views)))
        z, z_adv = model.embed(torch.cat([views, x_adv]), branch=streams).chunk(2)
        return {
            "clean": self.contrast(z, cancelled).mean() / 2,
            "adv": self.contrast(z_adv, cancelled).mean() / 2,
        }

    def cancelled(self, model: Model, views: Tensor, batch: Batch) -> FalseNegatives | Tensor | None:
        """Negatives that all terms and the attack leave out, as ``cancelled_nt_xent`` takes them: none."""
        return None

    def adversaries(
        self, model: Model, views: Tensor, batch: Batch, cancelled: FalseNegatives | Tensor | None = None
    ) -> Tensor:
        """Both views [2B, C, H, W] perturbed to be told apart."""
        return self.perturb(
            self.attacked(model),
            Pass("embed", self.adv_branch),
            lambda z: self.contrast(z, cancelled),
            views,
            self.config.attack,
            batch.rng("attack", 0).cat(batch.rng("attack", 1)),
        )

    def attacked(self, model: Model) -> nn.Module:
        """What embeds both views in the attack."""
        return model

    def contrast(self, embeddings: Tensor, cancelled: FalseNegatives | Tensor | None = None) -> Tensor:
        """NT-Xent of every row, [2B]."""
        return cancelled_nt_xent(embeddings, cancelled, temperature=self.config.temperature, impl=self.config.impl)

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the clean and that of the adversarial stream."""
        return (self.clean_branch, self.adv_branch)
