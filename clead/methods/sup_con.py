"""SupCon."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.config import ContrastiveConfig, Real
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model
from clead_kernels import sup_con


class SupCon(ContrastiveMethod["SupCon.Config"]):
    """Supervised contrastive loss on two views: all images of a class attract each other; no defence.

    Khosla et al., "Supervised contrastive learning", NeurIPS 2020, arXiv:2004.11362, eq. 2 (L_out):

        L = 1/2N sum_i -1/|P(i)| sum_{p in P(i)} log( e^{s_ip} / sum_{a != i} e^{s_ia} ),  P(i) = {p != i: y_p = y_i}

    The official code multiplies the loss by temperature / 0.07. Here it does not: for SGD that factor is the same as
    one on the learning rate and its inverse on the weight decay, which is how the recipes have it.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """SupCon."""

        temperature: Real = 0.1
        """Softmax temperature of the contrastive loss."""

    paper = "Khosla et al., NeurIPS 2020, arXiv:2004.11362"
    ops = ("sup_con",)
    labelled = True

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2 on both views in one forward pass."""
        embeddings = model.embed(self.views(batch), branch=self.clean_branch)
        loss = sup_con(embeddings, batch.labels.repeat(2), temperature=self.config.temperature, impl=self.config.impl)
        return {"sup_con": loss}
