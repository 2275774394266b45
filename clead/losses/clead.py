"""C-LEAD, eq. 2."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from clead_kernels import Impl, info_nce


def clead_loss(
    original: Tensor, perturbed: Mapping[str, Tensor], *, temperature: float, impl: Impl = "auto"
) -> dict[str, Tensor]:
    """One InfoNCE term per attack; C-LEAD's loss is their mean.

        L = 1/|A| sum_{a in A} 1/N sum_i -log( e^{s(x_i, x_i^a)} / sum_j e^{s(x_i, x_j^a)} ),  A = {PGD, CW}

    The printed eq. 2 is garbled (a nested fraction, "sin"). The negatives are the other images' versions under the
    same attack: "each image in a negative pair is a perturbed version of different images" (section 1).

    Args:
        original: embeddings of the views before perturbation, [B, d].
        perturbed: embeddings under each attack, [B, d], row i of image i.
        temperature: softmax temperature tau; s is the cosine over tau.
        impl: implementation of the operators.

    Returns:
        The scalar term of each attack, already divided by the number of attacks.
    """
    return {
        name: info_nce(original, embeddings, temperature=temperature, impl=impl) / len(perturbed)
        for name, embeddings in perturbed.items()
    }
