"""TRADES: accuracy on clean images, and the same answer around them.

Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019, arXiv:1901.08573.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(logits: Tensor, adv_logits: Tensor) -> Tensor:
    """KL(p || p') = sum_k p_k log(p_k / p'_k) per row: what TRADES' inner maximisation ascends.

    Args:
        logits: [B, K], of p = softmax(logits).
        adv_logits: [B, K], of p'.

    Returns:
        [B], at least 0.
    """
    return F.kl_div(adv_logits.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def trades_loss(logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float) -> dict[str, Tensor]:
    """Cross-entropy on clean images plus the divergence that the attack found (eq. 5).

        L = 1/B sum_i CE(f(x_i), y_i) + beta / B sum_i KL(p(x_i) || p(x'_i))

    beta is the paper's 1 / lambda. As in the official code, gradients flow through both arguments of the divergence.

    Args:
        logits: of the clean images, [B, K].
        adv_logits: of their adversarial images, [B, K].
        labels: int64 [B].
        beta: weight of the divergence.

    Returns:
        The scalar terms ``ce`` and ``kl``, whose sum is L.
    """
    return {"ce": F.cross_entropy(logits, labels), "kl": beta * kl_divergence(logits, adv_logits).mean()}
