"""Cross-entropy training without any defence."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clead.config import Stage, TrainConfig
from clead.methods.base import Batch, Method
from clead.models import LinearHead, Model


class CrossEntropy(Method[TrainConfig]):
    """Supervised cross-entropy on augmented images, the undefended model of every robustness table."""

    @dataclass(frozen=True)
    class Config(TrainConfig):
        """Cross-entropy training has no settings of its own."""

        stages: tuple[Stage, ...] = ("pretrain", "evaluate")

    paper = "the papers' 'w/o training' baseline"
    labelled = True

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A linear classifier."""
        return {"classifier": LinearHead(feature_dim, num_classes)}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """CE(f(t(x)), y)."""
        x = self.augment(batch.images, batch.rng("augment"))
        branch = self.config.encoder.bn.branches[0]
        return {"ce": F.cross_entropy(model.logits(x, branch=branch), batch.labels)}
