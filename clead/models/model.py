"""An encoder and the heads trained on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from clead.models.batch_norm import Branch
from clead.models.cached import cached_encoding
from clead.models.encoder import Encoder


class Model(nn.Module):
    """An encoder with named heads.

    Args:
        encoder: images -> features.
        heads: by name; ``projector`` and ``classifier`` are what ``embed`` and ``logits`` look for.
        compute_dtype: bfloat16 runs encoder and heads under autocast, with batch-norm statistics in float32; what
            comes out is float32. None computes in the dtype of the weights.
        chunk: encode at most so many images at once, see ``cached_encoding``; a segment of images in one batch-norm
            branch has chunks of its own, and heads see all features together. None encodes every batch at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        heads: Mapping[str, nn.Module],
        compute_dtype: torch.dtype | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.compute_dtype = compute_dtype
        self.chunk = chunk

    def computing_in(self, dtype: torch.dtype | None, chunk: int | None = None) -> Model:
        """A model of the very same modules that computes in another type, and in chunks."""
        return Model(self.encoder, dict(self.heads.items()), dtype, chunk)

    @property
    def evaluation_branch(self) -> str:
        """The batch-norm branch of evaluation."""
        return self.encoder.evaluation_branch

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W] in [0, 1], features [B, feature_dim] without a classifier.

        Through the branch of evaluation: what an attack or a benchmark of others calls. Training names its branches.
        """
        look = self.logits if "classifier" in self.heads else self.features
        return look(x, self.evaluation_branch)

    def features(self, x: Tensor, branch: Branch) -> Tensor:
        """Features [B, feature_dim] of images [B, C, H, W] in [0, 1]."""
        if self.chunk is None or len(x) <= self.chunk:
            return self._features(x, branch)
        segments = ((branch, len(x)),) if isinstance(branch, str) else branch
        streams = zip(torch.split(x, [size for _, size in segments]), segments, strict=True)
        encoded = [
            cached_encoding(self.encoder, stream, chunk=self.chunk, encode=partial(self._features, branch=name))
            for stream, (name, _) in streams
        ]
        return torch.cat(encoded)

    def embed(self, x: Tensor, branch: Branch, head: str = "projector") -> Tensor:
        """Embeddings [B, D], not normalised, of images [B, C, H, W] in [0, 1]."""
        return self.project(self.features(x, branch), branch, head)

    def logits(self, x: Tensor, branch: Branch, head: str = "classifier") -> Tensor:
        """Logits [B, num_classes] of images [B, C, H, W] in [0, 1]."""
        return self.classify(self.features(x, branch), head)

    def project(self, features: Tensor, branch: Branch, head: str = "projector") -> Tensor:
        """Embeddings [B, D], not normalised, of features [B, feature_dim]."""
        return self._run(lambda: self._head(head)(features, branch=branch), features.device)

    def classify(self, features: Tensor, head: str = "classifier") -> Tensor:
        """Logits [B, num_classes] of features [B, feature_dim]."""
        return self._run(lambda: self._head(head)(features), features.device)

    def _features(self, x: Tensor, branch: Branch) -> Tensor:
        return self._run(lambda: self.encoder(x, branch=branch), x.device)

    def _run(self, module: Callable[[], Tensor], device: torch.device) -> Tensor:
        if self.compute_dtype is None:
            return module()
        with torch.autocast(device.type, self.compute_dtype):
            return module().float()

    def _head(self, name: str) -> nn.Module:
        if name not in self.heads:
            raise ValueError(f"head must be one of {tuple(self.heads)}, got {name!r}")
        return self.heads[name]
