"""A whole split as features or embeddings, for protocols that never look at an image twice."""

from __future__ import annotations

import torch
from torch import Tensor

from clead.data import Dataset
from clead.models import Model


@torch.no_grad()
def encode(model: Model, dataset: Dataset, *, branch: str, head: str | None = None, batch_size: int = 500) -> Tensor:
    """Encode a split, in eval mode.

    Args:
        model: put into eval mode.
        dataset: N images.
        branch: batch-norm branch.
        head: the projector's name for embeddings, as it gives them (not normalised); None for features.
        batch_size: images at once.

    Returns:
        float32 [N, feature_dim or width of the head].
    """
    model.eval()
    samples = torch.arange(len(dataset), device=dataset.labels.device)
    parts = (dataset.batch(part) for part in samples.split(batch_size))
    if head is None:
        return torch.cat([model.features(part, branch=branch) for part in parts])
    return torch.cat([model.embed(part, branch=branch, head=head) for part in parts])
