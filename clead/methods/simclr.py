"""SimCLR."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.config import ContrastiveConfig
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model
from clead_kernels import nt_xent


class SimCLR(ContrastiveMethod["SimCLR.Config"]):
    """NT-Xent between two augmented views of every image; no labels, no defence.

    Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020, arXiv:2002.05709.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """SimCLR."""

    paper = "Chen et al., ICML 2020, arXiv:2002.05709"
    ops = ("nt_xent",)

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of both views in one forward pass."""
        embeddings = model.embed(self.views(batch), branch=self.clean_branch)
        return {"nt_xent": nt_xent(embeddings, temperature=self.config.temperature, impl=self.config.impl)}
