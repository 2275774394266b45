"""What methods with a projector share."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor, nn

from clead.config import ContrastiveConfig
from clead.methods.base import Batch, Method
from clead.models import Projector
from clead_kernels import FalseNegatives, cancelled

K = TypeVar("K", bound=ContrastiveConfig)


class ContrastiveMethod(Method[K], Generic[K]):
    """Base of the methods whose loss is on the embeddings of a projector."""

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """The projector."""
        projector, bn = self.config.projector, self.config.encoder.bn
        shape = (feature_dim, projector.hidden_dim, projector.dim, projector.layers, projector.batch_norm)
        return {"projector": Projector(*shape, bn)}

    @property
    def clean_branch(self) -> str:
        """The batch-norm branch of clean images."""
        return self.config.encoder.bn.branches[0]

    def views(self, batch: Batch, count: int = 2) -> Tensor:
        """``count`` augmented views of every image, view-major: [count * B, C, H, W]."""
        return self.augment(batch.images, batch.views("augment", count))

    def log_cancelled(self, batch: Batch, embeddings: Tensor, rule: FalseNegatives) -> None:
        """Log what ``rule`` does to two views [2B, d], on steps that are logged.

        ``cancelled_pairs`` is the mean number of negatives a row loses; against the labels, which training itself does
        not read, ``cancelled_precision`` and ``cancelled_recall``.
        """
        if batch.metrics is not None:
            found = cancelled(embeddings, rule, labels=batch.labels)
            batch.metrics["cancelled_pairs"] = found.counts.double().mean()
            batch.metrics["cancelled_precision"] = found.precision
            batch.metrics["cancelled_recall"] = found.recall
