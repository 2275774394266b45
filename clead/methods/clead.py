"""C-LEAD: contrastive learning for enhanced adversarial defense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clead.attacks import frozen
from clead.config import AttackConfig, ContrastiveConfig, Real
from clead.losses import clead_loss, instance_margin
from clead.methods.base import Batch, Method
from clead.models import Branch, Model, Projector
from clead_kernels import info_nce


class CLead(Method["CLead.Config"]):
    """InfoNCE between every view and its PGD and CW versions; no labels.

    Ghosh et al., "C-LEAD: Contrastive Learning for Enhanced Adversarial Defense", arXiv:2510.27249, eq. 2 and
    algorithm 1. What the paper leaves open is settled as follows: both attacks start from the view itself and need no
    labels; PGD ascends the InfoNCE term it will be trained on; CW ascends the instance margin
    max_{j != i} s_ij - s_ii inside the same linf ball (the paper indexes CW by eps, so it must be bounded by eps); the
    anchors are fixed during the attack, batch norm is in eval mode, and one set of batch-norm statistics serves all
    streams unless the encoder has an ``adv`` branch.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """C-LEAD."""

        temperature: Real = 0.1
        """Softmax temperature of the contrastive loss."""
        attack: AttackConfig = AttackConfig()

    paper = "Ghosh et al., arXiv:2510.27249"
    ops = ("info_nce", "similarity", "pgd_step_", "random_start_")

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A two-layer projector."""
        return {"projector": Projector(feature_dim, self.config.projector.hidden_dim, self.config.projector.dim)}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2: the mean of the PGD and the CW term."""
        x = self.augment(batch.images, batch.rng("augment"))
        perturbed = self.perturbations(model, x, batch)
        embeddings = model.embed(torch.cat([x, *perturbed.values()]), branch=self._streams(len(x), len(perturbed)))
        original, *others = embeddings.split(len(x))
        return clead_loss(
            original,
            dict(zip(perturbed, others, strict=True)),
            temperature=self.config.temperature,
            impl=self.config.impl,
        )

    def perturbations(self, model: Model, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """x_PGD and x_CW, both [B, C, H, W], from the same view."""
        temperature, impl = self.config.temperature, self.config.impl
        with frozen(model), torch.no_grad():
            anchors = model.embed(x, branch=self.config.encoder.bn.branches[0])
        losses = {
            "pgd": lambda z: info_nce(anchors, z, temperature=temperature, reduction="none", impl=impl),
            "cw": lambda z: instance_margin(anchors, z, temperature=temperature, impl=impl),
        }
        return {
            name: self.perturb(
                model,
                lambda x_adv: model.embed(x_adv, branch=self.adv_branch),
                loss,
                x,
                self.config.attack,
                batch.rng("attack", view),
            )
            for view, (name, loss) in enumerate(losses.items())
        }

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the clean and that of the adversarial stream."""
        return (self.config.encoder.bn.branches[0], self.adv_branch)

    def _streams(self, size: int, attacks: int) -> Branch:
        clean = self.config.encoder.bn.branches[0]
        if self.adv_branch == clean:
            return clean
        return ((clean, size), (self.adv_branch, size * attacks))
