"""C-LEAD, eq. 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from clead_kernels import FalseNegatives, Impl, info_nce

Negatives = Literal["same_attack", "all_views", "clean"]


def clead_loss(
    original: Tensor,
    perturbed: Mapping[str, Tensor],
    *,
    temperature: float,
    negatives: Negatives = "same_attack",
    impl: Impl = "auto",
) -> dict[str, Tensor]:
    """One InfoNCE term per attack; C-LEAD's loss is their mean.

        L = 1/|A| sum_{a in A} 1/N sum_i -log( e^{s(x_i, x_i^a)} / (e^{s(x_i, x_i^a)} + sum_{n in N_i} e^{s(x_i, n)}) )

    The printed eq. 2 is garbled (a nested fraction, "sin") and leaves N_i open.

    Args:
        original: embeddings of the views before perturbation, [B, d].
        perturbed: embeddings under each attack of A, [B, d], row i of image i.
        temperature: softmax temperature tau; s is the cosine over tau.
        negatives: see ``clead_term``.
        impl: implementation of the operators.

    Returns:
        The scalar term of each attack, already divided by the number of attacks.
    """
    return {
        name: clead_term(
            original,
            embeddings,
            [other for key, other in perturbed.items() if key != name],
            temperature=temperature,
            negatives=negatives,
            impl=impl,
        )
        / len(perturbed)
        for name, embeddings in perturbed.items()
    }


def clead_term(
    original: Tensor,
    perturbed: Tensor,
    others: Sequence[Tensor] = (),
    *,
    temperature: float,
    negatives: Negatives = "same_attack",
    reduction: Literal["mean", "none"] = "mean",
    impl: Impl = "auto",
) -> Tensor:
    """The term of one attack.

    Args:
        original: embeddings of the views before perturbation, [B, d].
        perturbed: embeddings under this attack, [B, d].
        others: embeddings under the other attacks, [B, d] each.
        temperature: softmax temperature.
        negatives: N_i, always of the other images: their versions under the same attack (as section 1 has it: "each
            image in a negative pair is a perturbed version of different images"), under every attack and before
            any, or before any alone.
        reduction: "mean" over the images, or "none".
        impl: implementation of the operators.

    Returns:
        0-d loss, or [B] for ``reduction="none"``.
    """
    image = torch.arange(len(original), device=original.device)
    candidates, itself, left_out = perturbed, None, None
    if negatives == "all_views":
        candidates = torch.cat([perturbed, *others, original])
        left_out = (image, image.repeat(len(others) + 2))  # an image's own other versions; its positive is safe
    elif negatives == "clean":
        candidates, itself = torch.cat([perturbed, original]), image + len(image)
        left_out = (torch.zeros_like(image), torch.cat([torch.zeros_like(image), torch.full_like(image, -1)]))
    return info_nce(
        original,
        candidates,
        temperature=temperature,
        self_index=itself,
        false_negatives=None if left_out is None else FalseNegatives(labels=left_out),
        reduction=reduction,
        impl=impl,
    )
