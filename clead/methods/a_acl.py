"""A-ACL: ACL with adaptive false-negative cancellation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.methods.acl import ACL
from clead.methods.base import Batch
from clead.methods.cancellation import CancellationConfig, false_negatives
from clead.models import Model
from clead_kernels import FalseNegatives


class AACL(ACL):
    """ACL without the negatives that look like the anchor, by a threshold that falls during training.

    Gupta et al., "Contrastive self-supervised learning leads to higher adversarial susceptibility", AAAI 2023,
    arXiv:2207.10862, table 5; its supplement was not to be had. Settled here as for A-RoCL: the same negatives are
    cancelled in the attack and in both streams, by the clean views in the clean branch.
    """

    @dataclass(frozen=True)
    class Config(CancellationConfig, ACL.Config):
        """A-ACL."""

    paper = "Gupta et al., AAAI 2023, arXiv:2207.10862"
    config: AACL.Config

    def cancelled(self, model: Model, views: Tensor, batch: Batch) -> FalseNegatives | Tensor:
        """By the views in the clean branch."""
        return false_negatives(self.config, model, views, batch, self.clean_branch)
