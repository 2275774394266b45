"""UEL: invariant and spreading instance features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.config import ContrastiveConfig, Real
from clead.losses import uel_loss
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model


class UEL(ContrastiveMethod["UEL.Config"]):
    """NT-Xent against constant keys, plus a term that keeps other images from being taken for this one; no labels.

    Ye et al., "Unsupervised embedding learning via invariant and spreading instance feature", CVPR 2019,
    arXiv:1904.03436, as its official code has it: both views are anchors, and the keys carry no gradient.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """UEL."""

        temperature: Real = 0.1
        """Softmax temperature of the contrastive loss."""

    paper = "Ye et al., CVPR 2019, arXiv:1904.03436"
    ops = ("nt_xent",)

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Both views in one forward pass."""
        embeddings = model.embed(self.views(batch), branch=self.clean_branch)
        return {"uel": uel_loss(embeddings, temperature=self.config.temperature, impl=self.config.impl)}

    @property
    def op_features(self) -> dict[str, str]:
        """The second term of the loss."""
        return {"spread": "yes"}

    @property
    def selected_on_test(self) -> tuple[str, ...]:
        """The encoder and the classifiers, in CLAE's code."""
        return ("pretrain", "linear_eval", "logistic_regression")
