"""An encoder and the heads trained on it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from clead.models.batch_norm import Branch
from clead.models.encoder import Encoder


class Model(nn.Module):
    """An encoder with named heads.

    Args:
        encoder: images -> features.
        heads: by name; ``projector`` and ``classifier`` are what ``embed`` and ``logits`` look for.
    """

    def __init__(self, encoder: Encoder, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    @property
    def evaluation_branch(self) -> str:
        """The batch-norm branch of evaluation."""
        return self.encoder.evaluation_branch

    def features(self, x: Tensor, branch: Branch) -> Tensor:
        """Features [B, feature_dim] of images [B, C, H, W] in [0, 1]."""
        features: Tensor = self.encoder(x, branch=branch)
        return features

    def embed(self, x: Tensor, branch: Branch, head: str = "projector") -> Tensor:
        """Embeddings [B, D], not normalised, of images [B, C, H, W] in [0, 1]."""
        embeddings: Tensor = self._head(head)(self.features(x, branch), branch=branch)
        return embeddings

    def logits(self, x: Tensor, branch: Branch, head: str = "classifier") -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W] in [0, 1]."""
        logits: Tensor = self._head(head)(self.features(x, branch))
        return logits

    def _head(self, name: str) -> nn.Module:
        if name not in self.heads:
            raise ValueError(f"head must be one of {tuple(self.heads)}, got {name!r}")
        return self.heads[name]
