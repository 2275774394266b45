"""Adversarial supervised contrastive learning, eq. 9."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clead_kernels import Impl, sup_con


def ascl_loss(
    views: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    reduction: Literal["mean", "none"] = "mean",
    impl: Impl = "auto",
) -> Tensor:
    """SupCon from clean views to adversarial images of their class.

        L = 1/VB sum_i -1/|P(i)| sum_{p in P(i)} log( e^{s(z_i, z_p^adv)} / sum_{a in A(i)} e^{s(z_i, z_a)} )

    i runs over the clean views, P(i) over the adversarial images of i's class (that of i's own image among them), A(i)
    over all clean views and adversarial images but i. The paper's eq. 9 prints z^adv without its index p; as printed it
    would not depend on the class at all.

    Li et al., "Adversarial supervised contrastive learning", Machine Learning 112 (2023), 10.1007/s10994-022-06269-7.

    Args:
        views: embeddings of clean views, [V * B, d], view-major.
        adversarial: embeddings of adversarial images, [B, d].
        labels: int64 [B], at least 0.
        temperature: softmax temperature tau; s is the cosine over tau.
        reduction: "mean" over the V * B anchors, or "none".
        impl: implementation of the operators.

    Returns:
        0-d loss, or [V * B] for ``reduction="none"``.
    """
    rows = torch.arange(len(views), device=views.device)
    return sup_con(
        views,
        labels.repeat(len(views) // len(labels)),
        candidates=torch.cat([views, adversarial]),
        candidate_labels=torch.cat([torch.full_like(rows, -1), labels]),  # clean views are never positives
        self_index=rows,
        temperature=temperature,
        reduction=reduction,
        impl=impl,
    )
