"""RoCL: robust contrastive learning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clead.config import AttackConfig, ContrastiveConfig, Real, require
from clead.losses import cancelled_nt_xent
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model, Pass
from clead_kernels import FalseNegatives


class RoCL(ContrastiveMethod["RoCL.Config"]):
    """NT-Xent of two views and an adversarial version of the first, against constant keys; no labels.

    Kim et al., "Adversarial self-supervised contrastive learning", NeurIPS 2020, arXiv:2006.07589, eq. 5 and 6, as the
    official code has it:

        L = L_NT(t, t', t + d) + 1/lambda L_NT(t + d, t'),   d = argmax L_NT(t + d, t')

    - The three views' loss adds up the two positives of a row, each with its own logarithm, where the paper has the sum
      inside one logarithm.
    - Keys carry no gradient, neither here nor in the attack; batch norm is in eval mode during the attack, and one
      set of statistics serves all streams.
    - The second term has a forward pass of its own, so batch norm sees (t + d, t') alone; lambda is 256 in the code.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """RoCL."""

        attack: AttackConfig = AttackConfig(steps=7)
        regularization: Real = 1 / 256
        """Weight of the second term, 1 / lambda; 0 leaves it out."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.regularization >= 0, "regularization", "at least 0", self.regularization)

    paper = "Kim et al., NeurIPS 2020, arXiv:2006.07589"
    ops = ("nt_xent", "pgd_step_", "random_start_")

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 6."""
        views = self.views(batch)
        first, second = views.chunk(2)
        cancelled = self.cancelled(model, views, batch)
        x_adv = self.adversary(model, first, second, batch, cancelled)
        # Two forward passes in one: each segment has statistics of its own.
        segments = [torch.cat([views, x_adv]), torch.cat([x_adv, second])][: 2 if self.config.regularization else 1]
        streams = tuple((self.adv_branch, len(segment)) for segment in segments)
        z, *others = model.embed(torch.cat(segments), branch=streams).split([size for _, size in streams])
        terms = {"contrast": 2 * self.contrast(z, cancelled, num_views=3).mean()}
        for z in others:
            terms["regularization"] = self.config.regularization * self.contrast(z, cancelled).mean()
        return terms

    def cancelled(self, model: Model, views: Tensor, batch: Batch) -> FalseNegatives | Tensor | None:
        """Negatives that all terms and the attack leave out, as ``cancelled_nt_xent`` takes them: none."""
        return None

    def adversary(
        self,
        model: Model,
        x: Tensor,
        target: Tensor,
        batch: Batch,
        cancelled: FalseNegatives | Tensor | None = None,
    ) -> Tensor:
        """x + d [B, C, H, W] that is far from the other view ``target``."""
        embed = Pass("embed", self.adv_branch)
        keys = self.constant(model, embed, target)
        return self.perturb(
            model,
            embed,
            lambda z: self.contrast(torch.cat([z, keys]), cancelled).view(2, -1).sum(0),
            x,
            self.config.attack,
            batch.rng("attack"),
        )

    def contrast(
        self, embeddings: Tensor, cancelled: FalseNegatives | Tensor | None = None, num_views: int = 2
    ) -> Tensor:
        """NT-Xent of every row against constant keys, the mean over its positives: [num_views * B]."""
        return cancelled_nt_xent(
            embeddings,
            cancelled,
            num_views=num_views,
            temperature=self.config.temperature,
            grad_candidates=False,
            impl=self.config.impl,
        )

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the adversarial images, which serves all streams."""
        return (self.adv_branch,)
