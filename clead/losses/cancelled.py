"""NT-Xent that leaves negatives out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead_kernels import FalseNegatives, Impl, nt_xent


def cancelled_nt_xent(
    embeddings: Tensor,
    cancelled: FalseNegatives | Tensor | None,
    *,
    temperature: float,
    num_views: int = 2,
    grad_candidates: bool = True,
    impl: Impl = "auto",
) -> Tensor:
    """``log( sum_{P_i} e^s + sum_{j in Q_i} e^s ) - mean_{P_i} s`` of every row, Q_i the negatives that remain.

    Args:
        embeddings: [V * B, d], view-major.
        cancelled: a rule on these embeddings; or pairs of images, bool [B, B], whose views are no negatives of each
            other; or None.
        temperature: softmax temperature.
        num_views: V, 2 to 4.
        grad_candidates: False makes the keys constants.
        impl: implementation of the operators; pairs of images are computed in eager PyTorch, whatever it says.

    Returns:
        [V * B].
    """
    if not isinstance(cancelled, Tensor):
        return nt_xent(
            embeddings,
            num_views=num_views,
            temperature=temperature,
            false_negatives=cancelled,
            grad_candidates=grad_candidates,
            reduction="none",
            impl=impl,
        )
    z = F.normalize(embeddings)
    s = z @ (z if grad_candidates else z.detach()).mT / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    image = torch.arange(len(z) // num_views, device=z.device).repeat(num_views)
    positive = (image[:, None] == image) & ~itself
    left_out = itself | cancelled.repeat(num_views, num_views) & ~positive
    log_sum = s.masked_fill(left_out, -torch.inf).logsumexp(1)
    return log_sum - (s * positive).sum(1) / (num_views - 1)
