"""The contrastive terms of adversarial supervised contrastive learning, without and with labels.

Li et al., "Adversarial supervised contrastive learning", Machine Learning 112 (2023), 10.1007/s10994-022-06269-7.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clead_kernels import Impl, nt_xent, sup_con

Reduction = Literal["mean", "none"]


def ascl_loss(
    views: Tensor | None,
    adversarial: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    """l_ASCL: SupCon from clean views to adversarial images of their class (eq. 9).

        L = 1/2B sum_i -1/|P(i)| sum_{p in P(i)} log( e^{s(z_i, z_p^adv)} / sum_{a in A(i)} e^{s(z_i, z_a)} )

    i runs over the clean views, P(i) over the adversarial images of i's class (that of i's own image among them), A(i)
    over all clean views and adversarial images but i. The paper's eq. 9 prints z^adv without its index p; as printed it
    would not depend on the class at all. Without clean views it is eq. 8: SupCon among the adversarial ones.

    Args:
        views: embeddings of two clean views, [2B, d], view-major; None for eq. 8.
        adversarial: embeddings of adversarial images, [B, d]; for eq. 8 of two adversarial views, [2B, d].
        labels: int64 [B], at least 0.
        temperature: softmax temperature tau; s is the cosine over tau.
        reduction: "mean" over the 2B anchors, or "none".
        impl: implementation of the operators.

    Returns:
        0-d loss, or [2B] for ``reduction="none"``.
    """
    both = labels.repeat(2)
    if views is None:
        return sup_con(adversarial, both, temperature=temperature, reduction=reduction, impl=impl)
    return sup_con(
        views,
        both,
        candidates=torch.cat([views, adversarial]),
        candidate_labels=torch.cat([torch.full_like(both, -1), labels]),  # clean views are never positives
        self_index=torch.arange(len(views), device=views.device),
        temperature=temperature,
        reduction=reduction,
        impl=impl,
    )


def instance_loss(
    views: Tensor | None, adversarial: Tensor, *, temperature: float, reduction: Reduction = "mean", impl: Impl = "auto"
) -> Tensor:
    """l_CL: NT-Xent over two clean views and the adversarial image, or over two adversarial views (eqs. 4 and 5).

    Arguments as for ``ascl_loss``; "none" gives one value per embedding, [3B] or [2B].
    """
    everything = adversarial if views is None else torch.cat([views, adversarial])
    num_views = 2 if views is None else 3
    return nt_xent(everything, num_views=num_views, temperature=temperature, reduction=reduction, impl=impl)
