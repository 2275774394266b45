"""False-negative rules as PyTorch's operators write them: a mask of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import THRESHOLD, Loss


def cancelled(scores: Tensor, case: Loss, labels: Tensor | None, scale: float = 1.0) -> Tensor:
    """Which pairs the rule of ``case`` takes for false negatives, bool [N, N].

    ``scores`` [N, N] are cosines times ``scale``. What a rule says of a row itself and of its positive is the caller's.
    """
    if case.rule == "threshold":
        return scores > scale * THRESHOLD
    assert labels is not None
    if case.rule == "cuts":
        return scores > scale * labels[:, None]
    if case.rule == "labels":
        both = labels.repeat(2)
        return both[:, None] == both
    half = scores.shape[0] // 2
    negatives = scores.clone()
    for offset in (0, half, -half):
        negatives.diagonal(offset).fill_(-torch.inf)
    return negatives >= negatives.topk(case.topk, dim=1).values[:, -1:]
