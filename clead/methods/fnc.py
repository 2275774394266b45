"""SimCLR with false-negative cancellation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clead.config import ContrastiveConfig, Real, require
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model
from clead_kernels import FalseNegatives, nt_xent


class FNC(ContrastiveMethod["FNC.Config"]):
    """NT-Xent without the negatives most similar to the anchor: those above a threshold, the top k, or both.

    Huynh et al., "Boosting contrastive self-supervised learning with false negative cancellation", WACV 2022,
    arXiv:2011.11765, with F_i the false negatives found for row i:

        eliminate:  L_i = -log( e^{s_i+} / sum_{j not in F_i} e^{s_ij} )
        attract:    L_i = -1/(1 + |F_i|) sum_{p in {+} u F_i} log( e^{s_ip} / sum_j e^{s_ij} )

    The official code attracts, F_i = top k *and* above the threshold, found by momentum features of extra support
    views in a memory of past batches. The adaptive-FNC paper, whose table has FNC on CIFAR-10, describes F_i = top k
    *or* above the threshold, cancelled. Both are settings here, the second the default; false negatives are found
    within the batch among the embeddings in the loss, without memory, momentum encoder or support views.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """FNC."""

        threshold: Real | None = 0.7
        """Cosine above which a negative is a false one; no such rule when None."""
        topk: int | None = 10
        """So many most similar negatives of a row are false ones; no such rule when None."""
        combine: Literal["or", "and"] = "or"
        """Whether one rule suffices or both must hold."""
        treatment: Literal["eliminate", "attract"] = "eliminate"
        """Leave false negatives out, or make them positives."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.threshold is not None or self.topk is not None, "threshold or topk", "given", "neither")
            require(self.threshold is None or -1 <= self.threshold <= 1, "threshold", "in [-1, 1]", self.threshold)
            require(self.topk is None or self.topk > 0, "topk", "above 0", self.topk)

    paper = "Huynh et al., WACV 2022, arXiv:2011.11765"
    ops = ("nt_xent",)

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of both views in one forward pass, without the false negatives."""
        config = self.config
        rule = FalseNegatives(
            threshold=config.threshold, topk=config.topk, combine=config.combine, treatment=config.treatment
        )
        embeddings = model.embed(self.views(batch), branch=self.clean_branch)
        self.log_cancelled(batch, embeddings, rule)
        loss = nt_xent(embeddings, temperature=config.temperature, false_negatives=rule, impl=config.impl)
        return {"nt_xent": loss}

    @property
    def op_features(self) -> dict[str, str]:
        """Top-k and the treatment, which not every implementation has."""
        return {"topk": "yes" if self.config.topk else "no", "treatment": self.config.treatment}
