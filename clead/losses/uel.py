"""The loss of UEL."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clead_kernels import Impl, nt_xent


def uel_loss(
    embeddings: Tensor, *, temperature: float, reduction: Literal["mean", "none"] = "mean", impl: Impl = "auto"
) -> Tensor:
    """``-1/2N sum_i [ log P(i | i') + sum_{j not in {i, i'}} log(1 - P(i | j)) ]``, the keys held constant.

    Ye et al., arXiv:1904.03436, eq. 7 to 9 in the form of its official code: P(i | j) is the softmax of row i's cosines
    over all rows but i itself, and i' is the other view of i.

    Args:
        embeddings: [2N, d], view-major.
        temperature: softmax temperature.
        reduction: the mean, or one value per row.
        impl: implementation of the operators.

    Returns:
        0-d, or [2N].
    """
    return nt_xent(
        embeddings, temperature=temperature, grad_candidates=False, spread=1.0, reduction=reduction, impl=impl
    )
