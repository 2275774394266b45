"""The Carlini-Wagner margin, on class logits and on instances.

Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644, loss f6 without
its floor: inside an eps-ball the attack keeps ascending after the decision has flipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clead_kernels import Impl, similarity


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} logit_j - logit_y per row: positive exactly when the row is misclassified.

    Args:
        logits: [B, K], K >= 2.
        labels: int64 [B].

    Returns:
        [B].
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own


def instance_margin(anchors: Tensor, candidates: Tensor, *, temperature: float, impl: Impl = "auto") -> Tensor:
    """The margin of instance discrimination: max_{j != i} s_ij - s_ii with s = cosine / temperature.

    Args:
        anchors: [B, d].
        candidates: [B, d]; row i belongs to anchor i.
        temperature: softmax temperature.
        impl: implementation of the operators.

    Returns:
        [B].
    """
    logits = similarity(anchors, candidates, temperature=temperature, impl=impl)
    return margin(logits, torch.arange(len(logits), device=logits.device))
