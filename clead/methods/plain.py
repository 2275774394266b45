"""Plain instance discrimination."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.config import ContrastiveConfig, Real
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model
from clead_kernels import info_nce


class Plain(ContrastiveMethod["Plain.Config"]):
    """InfoNCE from one view to the other, batch against batch, in one direction; no labels, no defence.

    The "Plain" of Ho & Vasconcelos, "Contrastive learning with adversarial examples", NeurIPS 2020, arXiv:2010.12050,
    eq. 5: ``L = 1/N sum_i -log( e^{f(x_i^q) f(x_i^p) / t} / sum_k e^{f(x_i^q) f(x_k^p) / t} )``.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """Plain."""

        temperature: Real = 0.1
        """Softmax temperature of the contrastive loss."""

    paper = "Ho & Vasconcelos, NeurIPS 2020, arXiv:2010.12050"
    ops = ("info_nce",)

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 5, both views in one forward pass."""
        q, p = model.embed(self.views(batch), branch=self.clean_branch).chunk(2)
        return {"info_nce": info_nce(q, p, temperature=self.config.temperature, impl=self.config.impl)}

    @property
    def selected_on_test(self) -> tuple[str, ...]:
        """The encoder and the classifiers, in CLAE's code."""
        return ("pretrain", "linear_eval", "logistic_regression")
