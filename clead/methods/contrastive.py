"""What methods with a projector share."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from clead.config import ContrastiveConfig
from clead.methods.base import Batch, Method
from clead.models import Projector

K = TypeVar("K", bound=ContrastiveConfig)


class ContrastiveMethod(Method[K], Generic[K]):
    """Base of the methods whose loss is on the embeddings of a two-layer projector."""

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A two-layer projector."""
        return {"projector": Projector(feature_dim, self.config.projector.hidden_dim, self.config.projector.dim)}

    def views(self, batch: Batch, count: int = 2) -> Tensor:
        """``count`` augmented views of every image, view-major: [count * B, C, H, W]."""
        return torch.cat([self.augment(batch.images, batch.rng("augment", view)) for view in range(count)])
