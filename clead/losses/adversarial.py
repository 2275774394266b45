"""The losses of supervised adversarial training: TRADES and MART."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(logits_adv: Tensor, logits: Tensor) -> Tensor:
    """KL(p || p_adv) of every row: what TRADES' inner maximisation ascends.

    Args:
        logits_adv: [B, K], of the attacked images.
        logits: [B, K], of the clean ones.

    Returns:
        [B].
    """
    return F.kl_div(logits_adv.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def trades_loss(logits: Tensor, logits_adv: Tensor, labels: Tensor, *, beta: float = 6.0) -> dict[str, Tensor]:
    """CE(p, y) + beta KL(p || p_adv), batch means (Zhang et al., ICML 2019, arXiv:1901.08573, eq. 5 as in their code).

    Args:
        logits: [B, K], of clean images.
        logits_adv: [B, K], of attacked ones.
        labels: int64 [B].
        beta: weight of the divergence, 1 / lambda in the paper.

    Returns:
        The terms, scalars.
    """
    return {"ce": F.cross_entropy(logits, labels), "kl": beta * kl_divergence(logits_adv, logits).mean()}


def mart_loss(logits: Tensor, logits_adv: Tensor, labels: Tensor, *, beta: float = 5.0) -> dict[str, Tensor]:
    """BCE(p_adv, y) + beta (1 - p_y) KL(p || p_adv), batch means (Wang et al., ICLR 2020, eq. 11).

    BCE = -log p_adv,y - log(1 - max_{k != y} p_adv,k). It is evaluated from logits, where the official code adds
    constants of 1e-4 and 1e-12 against log(0).

    Args:
        logits: [B, K], of clean images, K >= 2.
        logits_adv: [B, K], of attacked ones.
        labels: int64 [B].
        beta: weight of the divergence, lambda in the paper.

    Returns:
        The terms, scalars.
    """
    own = F.one_hot(labels, logits.shape[1]).bool()
    log_p_adv = logits_adv.log_softmax(1)
    # log(1 - p_k) is the logsumexp over all classes but k.
    runner_up = log_p_adv.masked_fill(own, -torch.inf).argmax(1)
    not_runner_up = log_p_adv.scatter(1, runner_up[:, None], -torch.inf).logsumexp(1)
    bce = -log_p_adv[own] - not_runner_up
    doubt = 1 - logits.softmax(1)[own]
    return {"bce": bce.mean(), "kl": beta * (doubt * kl_divergence(logits_adv, logits)).mean()}
