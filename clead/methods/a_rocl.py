"""A-RoCL: RoCL with adaptive false-negative cancellation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.methods.base import Batch
from clead.methods.cancellation import CancellationConfig, false_negatives
from clead.methods.rocl import RoCL
from clead.models import Model
from clead_kernels import FalseNegatives


class ARoCL(RoCL):
    """RoCL without the negatives that look like the anchor, by a threshold that falls during training.

    Gupta et al., "Contrastive self-supervised learning leads to higher adversarial susceptibility", AAAI 2023,
    arXiv:2207.10862, table 5; its supplement was not to be had. Settled here: the same negatives are cancelled in the
    attack and in both terms of the loss; two images are no negatives where any two of their clean views have a cosine
    above the threshold (``mask_source``), for an attacked view would move its own cosines; a positive always stays.
    """

    @dataclass(frozen=True)
    class Config(CancellationConfig, RoCL.Config):
        """A-RoCL."""

    paper = "Gupta et al., AAAI 2023, arXiv:2207.10862"
    config: ARoCL.Config

    def cancelled(self, model: Model, views: Tensor, batch: Batch) -> FalseNegatives | Tensor:
        """By the views in the only branch."""
        return false_negatives(self.config, model, views, batch, self.adv_branch)
