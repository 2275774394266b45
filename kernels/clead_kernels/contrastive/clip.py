"""The symmetric front door; common arguments as in ``api``."""

from __future__ import annotations

from torch import Tensor

from .. import _arguments as arguments
from .. import dispatch
from . import call
from .call import Reduction
from .false_negatives import FalseNegatives
from .form import Denominator, Form
from .pairs import Pairs


def clip_loss(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    false_negatives: FalseNegatives | None = None,
    denominator: Denominator = "all",
    normalize: bool = True,
    weights: Tensor | None = None,
    grad_candidates: bool = True,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """The symmetric loss of CLIP (Radford et al., arXiv 2103.00020, fig. 3): the mean of InfoNCE a -> b and b -> a.

    Args:
        a: [M, d].
        b: [M, d], row i belongs to row i of ``a``; same dtype and device.
        temperature: see ``api``; 1 / CLIP's logit scale.
        false_negatives: see ``api``; a per-row threshold holds for row i of either direction, a pair of ``labels``
            is (of a, of b).
        denominator: see ``api``.
        normalize: see ``api``.
        weights: see ``api``.
        grad_candidates: see ``api``; False makes ``b`` a constant for a -> b and ``a`` for b -> a.
        reduction: see ``api``; ``"none"`` gives the mean of both directions of each row.
        impl: see ``api``.

    Returns:
        0-d loss, or [M] for ``reduction="none"``.

    Example:
        >>> loss = clip_loss(image_embeddings, text_embeddings, temperature=1 / logit_scale)
    """
    arguments.check_rows("a", a)
    arguments.check_rows("b", b)
    arguments.check_alike("a", a, "b", b)
    rows = a.shape[0]
    if b.shape[0] != rows:
        raise ValueError(f"a and b must have the same number of rows, got {rows} and {b.shape[0]}")
    pairs = Pairs(positive_offset=0).with_false_negatives(false_negatives, (rows, rows), a.device)
    options = call.Options(temperature, normalize, weights, grad_candidates, reduction, impl)
    form = Form(denominator=denominator).checked(normalize)
    return call.mirrored_loss("clip_loss", a, b, pairs, form, options)
