"""The Carlini-Wagner margin on class logits.

Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644, loss f6 without
its floor: inside an eps-ball the attack keeps ascending after the decision has flipped.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
