"""SimCLR with adaptive false-negative cancellation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clead.config import ContrastiveConfig, Real, require
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.methods.schedule import linear
from clead.models import Model
from clead_kernels import FalseNegatives, nt_xent


class AdaptiveFNC(ContrastiveMethod["AdaptiveFNC.Config"]):
    """NT-Xent without the negatives that look like the anchor, by a threshold that falls during training.

    Gupta et al., "Contrastive self-supervised learning leads to higher adversarial susceptibility", AAAI 2023,
    arXiv:2207.10862, eq. 4 and section 5.1:

        L = 1/2N sum_i -log( e^{s_i+} / (e^{s_i+} + sum_{j: cos_ij <= rho} e^{s_ij}) )

    with rho the threshold. Settled where the paper is silent: the cosine is that of the projected embeddings in the
    loss, as a constant; rho is linear in the steps done; a view's own partner is never cancelled; and cancelled
    pairs leave the denominator without becoming positives (eq. 4's text has them "selected into {x+}", section 5.1
    says that attraction is avoided because it harms robustness).
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """Adaptive FNC."""

        threshold_start: Real = 0.99
        """Cosine above which a negative is cancelled, at the first step."""
        threshold_end: Real = 0.7
        """The same at the last step."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("threshold_start", "threshold_end"):
                require(-1 <= getattr(self, name) <= 1, name, "a cosine in [-1, 1]", getattr(self, name))

    paper = "Gupta et al., AAAI 2023, arXiv:2207.10862"
    ops = ("nt_xent",)

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 4 on both views in one forward pass."""
        config = self.config
        threshold = linear(config.threshold_start, config.threshold_end, batch.progress)
        rule = FalseNegatives(threshold=threshold)
        embeddings = model.embed(self.views(batch), branch=self.clean_branch)
        self.log_cancelled(batch, embeddings, rule)
        loss = nt_xent(embeddings, temperature=config.temperature, false_negatives=rule, impl=config.impl)
        return {"nt_xent": loss}
