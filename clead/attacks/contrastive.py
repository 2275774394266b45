"""The label-free attack on an encoder: drive an image's embedding away from its own, towards those of others.

Kim et al., "Adversarial self-supervised contrastive learning", NeurIPS 2020, arXiv:2006.07589, eq. 3; as C-LEAD's
inner maximisation, the positive is the clean image itself.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clead_kernels import Impl, info_nce


def info_nce_against(anchors: Tensor, *, temperature: float, impl: Impl = "auto") -> Callable[[Tensor], Tensor]:
    """z -> -log(e^{s(a_i, z_i)} / sum_j e^{s(a_i, z_j)}) with s = cosine / temperature, for ``Objective.loss``.

    Args:
        anchors: embeddings [B, d] of the clean images, without gradient.
        temperature: of the softmax.
        impl: implementation of the operators.

    Returns:
        A function of the embeddings [B, d] of x_adv, row i of image i, to losses [B].
    """
    return lambda z: info_nce(anchors, z, temperature=temperature, reduction="none", impl=impl)
