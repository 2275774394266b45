"""MART: misclassified clean images count for more.

Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.losses.trades import kl_divergence

# The official code's: keeps the logarithm finite where all probability lies on one wrong class.
_TINY = 1e-4


def mart_loss(logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float) -> dict[str, Tensor]:
    """Boosted cross-entropy on adversarial images, and a divergence weighted by how wrong the clean image is.

        L = 1/B sum_i [ -log p'_{i,y} - log(1 - max_{k != y} p'_{i,k}) ] + beta / B sum_i KL(p_i || p'_i) (1 - p_{i,y})

    with p = softmax of the clean and p' of the adversarial logits. The official code adds 1e-4 inside the second
    logarithm, which we keep, and 1e-7 to the last factor, which we leave out. Gradients flow through all of it.

    Args:
        logits: of the clean images, [B, K], K >= 2.
        adv_logits: of their adversarial images, [B, K].
        labels: int64 [B].
        beta: weight of the divergence, the paper's lambda.

    Returns:
        The scalar terms ``bce`` and ``kl``, whose sum is L.
    """
    others = adv_logits.softmax(1).scatter(1, labels[:, None], -torch.inf).amax(1)
    boosted = F.cross_entropy(adv_logits, labels) - torch.log(1 + _TINY - others).mean()
    wrong = 1 - logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return {"bce": boosted, "kl": beta * (kl_divergence(logits, adv_logits) * wrong).mean()}
