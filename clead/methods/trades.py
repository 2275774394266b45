"""TRADES."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clead.config import Real, require
from clead.losses import kl_divergence, trades_loss
from clead.methods.base import Batch
from clead.methods.supervised import AdversarialTraining, AdversarialTrainingConfig
from clead.models import Model, Pass


class TRADES(AdversarialTraining["TRADES.Config"]):
    """Cross-entropy on clean images plus beta times the divergence to the attacked prediction.

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019, arXiv:1901.08573.
    The attack ascends KL(p(x) || p(x + delta)) with p(x) fixed and batch norm in eval mode. It starts from a uniform
    point of the ball (``attack.random_start``) where the official code draws N(0, 0.001^2): with ten steps of a
    quarter of the radius the two end alike, and ours is the start of every other method here.
    """

    @dataclass(frozen=True)
    class Config(AdversarialTrainingConfig):
        """TRADES."""

        beta: Real = 6.0
        """Weight of the divergence."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.beta >= 0, "beta", "at least 0", self.beta)

    paper = "Zhang et al., ICML 2019, arXiv:1901.08573"

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """CE(f(x), y) + beta KL(p(x) || p(x + delta)), both streams in one forward pass."""
        x = self.augment(batch.images, batch.rng("augment"))
        x_adv = self.diverge(model, x, batch)
        logits, logits_adv = model.logits(torch.cat([x, x_adv]), branch=self.adv_branch).chunk(2)
        return trades_loss(logits, logits_adv, batch.labels, beta=self.config.beta)

    def diverge(self, model: Model, x: Tensor, batch: Batch) -> Tensor:
        """x + delta of largest KL(p(x) || p(x + delta))."""
        classify = Pass("logits", self.adv_branch)
        return self.perturb(
            model,
            classify,
            partial(kl_divergence, logits=self.constant(model, classify, x)),
            x,
            self.config.attack,
            batch.rng("attack"),
        )
