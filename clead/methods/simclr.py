"""SimCLR."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clead.config import ContrastiveConfig
from clead.methods.base import Batch, Method
from clead.models import Model, Projector
from clead_kernels import nt_xent


class SimCLR(Method["SimCLR.Config"]):
    """NT-Xent between two augmented views of every image; no labels, no defence.

    Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020, arXiv:2002.05709.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """SimCLR."""

    paper = "Chen et al., ICML 2020, arXiv:2002.05709"
    ops = ("nt_xent",)

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A two-layer projector."""
        return {"projector": Projector(feature_dim, self.config.projector.hidden_dim, self.config.projector.dim)}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of both views in one forward pass."""
        views = torch.cat([self.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)])
        embeddings = model.embed(views, branch=self.config.encoder.bn.branches[0])
        return {"nt_xent": nt_xent(embeddings, temperature=self.config.temperature, impl=self.config.impl)}
