"""What false-negative cancellation by a threshold does to a batch: numbers to log, not a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from clead_kernels import similarity


def cancellation(embeddings: Tensor, labels: Tensor, threshold: float) -> dict[str, Tensor]:
    """How many negatives are cancelled, and how many of them rightly.

    Args:
        embeddings: [V * B, d], view-major: row ``v * B + n`` is view v of image n.
        labels: int64 [B].
        threshold: cosine above which a negative is cancelled.

    Returns:
        0-d tensors: ``cancelled_pairs``, the mean number per row; ``cancelled_precision``, the share of the cancelled
        pairs that are of one class, and ``cancelled_recall``, the share of the negatives of one class that are
        cancelled; both 0 where there is nothing to share.
    """
    images = torch.arange(len(labels), device=labels.device).repeat(len(embeddings) // len(labels))
    negative = images[:, None] != images[None, :]
    same_class = negative & (labels[images][:, None] == labels[images][None, :])
    # Always the reference: a pair that rounding puts on the other side of the threshold does not matter here.
    cancelled = negative & (similarity(embeddings, embeddings, temperature=1.0) > threshold)
    hits = (cancelled & same_class).sum()
    return {
        "cancelled_pairs": cancelled.sum() / max(len(embeddings), 1),
        "cancelled_precision": hits / cancelled.sum().clamp_min(1),
        "cancelled_recall": hits / same_class.sum().clamp_min(1),
    }
