"""The front doors of the contrastive family. Each says which pairs are positive; the losses are one formula.

Common arguments:

- ``temperature``: positive float, or a 0-d tensor, which may require grad.
- ``false_negatives``: a ``FalseNegatives`` rule, or None.
- ``normalize``: divide rows by their norms first (a row with a norm below 1e-12 gets no gradient).
- ``reduction``: ``"mean"`` over all rows (0 for an empty batch), ``"sum"`` or ``"none"`` (one value per row).
- ``impl``: which implementation, see ``explain``.

Embeddings are float64, float32, bfloat16 or float16; the loss is float64 for float64 and float32 otherwise, gradients
have the embeddings' dtype. Wrong shapes, devices and values raise ValueError, wrong types and dtypes TypeError, and a
named ``impl`` that cannot do it NotImplementedError.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import dispatch
from . import ops
from .pairs import FalseNegatives, Pairs

Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = ("mean", "sum", "none")


def info_nce(
    anchors: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    positives: Tensor | None = None,
    false_negatives: FalseNegatives | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """InfoNCE: every anchor picks its positive among the candidates (van den Oord et al., arXiv 1807.03748, eq. 4).

    ``loss_i = -log(exp(s_ip) / sum_j exp(s_ij))``, ``s_ij = <anchor_i, candidate_j> / temperature``.

    Args:
        anchors: [M, d].
        candidates: [N, d], same dtype and device; rows beyond M are extra negatives, e.g. a queue.
        temperature: see the module.
        positives: int64 [M], the candidate that is positive for each anchor, -1 = none (such a row contributes 0 and
            is counted in the mean); None = candidate i for anchor i, which needs N >= M.
        false_negatives: see the module; ``labels`` for anchors and candidates separately unless M = N.
        normalize: see the module.
        reduction: see the module.
        impl: see the module.

    Returns:
        0-d loss, or [M] for ``reduction="none"``.

    Example:
        >>> loss = info_nce(encoder(x_clean), encoder(x_adv), temperature=0.1)
    """
    arguments.check_rows("anchors", anchors)
    arguments.check_rows("candidates", candidates)
    arguments.check_alike("anchors", anchors, "candidates", candidates)
    rows, columns = anchors.shape[0], candidates.shape[0]
    if positives is None:
        if columns < rows:
            raise ValueError(f"candidates must have at least as many rows as anchors ({rows}), got {columns}")
        pairs = Pairs(positive_offset=0)
    else:
        pairs = Pairs(positive_index=_check_positives(positives, rows, columns, anchors.device))
    pairs = pairs.with_false_negatives(false_negatives, (rows, columns), anchors.device)
    return _loss("info_nce", anchors, candidates, temperature, normalize, pairs, reduction, impl)


def nt_xent(
    embeddings: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    num_views: int = 2,
    false_negatives: FalseNegatives | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """NT-Xent of SimCLR (Chen et al., arXiv 2002.05709, eq. 1), for two to four views of each image.

    ``loss_i = log sum_{j != i} exp(s_ij) - mean_{p in P_i} s_ip``, P_i = the other views of the same image.

    Args:
        embeddings: [num_views * images, d], view-major: row ``v * images + n`` is view v of image n.
        temperature: see the module.
        num_views: 2, 3 or 4.
        false_negatives: see the module; ``labels`` one per row or one per image.
        normalize: see the module.
        reduction: see the module.
        impl: see the module.

    Returns:
        0-d loss, or one value per row for ``reduction="none"``.

    Example:
        >>> loss = nt_xent(torch.cat([projector(view_1), projector(view_2)]), temperature=0.5)
    """
    arguments.check_rows("embeddings", embeddings)
    arguments.check_count("num_views", num_views, 2, 4)
    rows = embeddings.shape[0]
    if rows % num_views:
        raise ValueError(f"embeddings must have num_views = {num_views} rows per image, got {rows} rows")
    images = torch.arange(rows // num_views, device=embeddings.device).repeat(num_views)
    pairs = Pairs(self_offset=0, groups=images)
    pairs = pairs.with_false_negatives(false_negatives, (rows, rows), embeddings.device, views=num_views)
    return _loss("nt_xent", embeddings, None, temperature, normalize, pairs, reduction, impl)


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    candidates: Tensor | None = None,
    candidate_labels: Tensor | None = None,
    false_negatives: FalseNegatives | None = None,
    normalize: bool = True,
    reduction: Reduction | Literal["mean_valid"] = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """Supervised contrastive loss, L_out (Khosla et al., arXiv 2004.11362, eq. 2): rows of one class are positives.

    ``loss_i = log sum_j exp(s_ij) - mean_{p in P_i} s_ip``, P_i = rows with the label of row i. Without ``candidates``
    the embeddings meet each other and j = i is left out; with them nothing is left out.

    Args:
        embeddings: [M, d].
        labels: integers [M].
        temperature: see the module.
        candidates: [N, d], another set to contrast with, e.g. adversarial views; None = the embeddings themselves.
        candidate_labels: integers [N], required with ``candidates``.
        false_negatives: see the module; only pairs of different labels can be false negatives.
        normalize: see the module.
        reduction: see the module. A row without a positive contributes 0 and is counted in ``"mean"``;
            ``"mean_valid"`` is the mean over rows with a positive (0 if there is none).
        impl: see the module.

    Returns:
        0-d loss, or [M] for ``reduction="none"``.

    Example:
        >>> loss = sup_con(embeddings, labels, temperature=0.1)
    """
    arguments.check_rows("embeddings", embeddings)
    rows, device = embeddings.shape[0], embeddings.device
    groups = arguments.check_integers("labels", labels, [rows], device)
    if candidates is None:
        if candidate_labels is not None:
            raise ValueError("candidate_labels are for candidates, but candidates is None")
        columns, pairs = rows, Pairs(self_offset=0, groups=groups)
    else:
        arguments.check_rows("candidates", candidates)
        arguments.check_alike("embeddings", embeddings, "candidates", candidates)
        if candidate_labels is None:
            raise ValueError("candidates need candidate_labels, got None")
        columns = candidates.shape[0]
        candidate_groups = arguments.check_integers("candidate_labels", candidate_labels, [columns], device)
        pairs = Pairs(groups=groups, candidate_groups=candidate_groups)
    pairs = pairs.with_false_negatives(false_negatives, (rows, columns), device)
    return _loss("sup_con", embeddings, candidates, temperature, normalize, pairs, reduction, impl)


def clip_loss(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    false_negatives: FalseNegatives | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """The symmetric loss of CLIP (Radford et al., arXiv 2103.00020, fig. 3): the mean of InfoNCE a -> b and b -> a.

    Args:
        a: [M, d].
        b: [M, d], row i belongs to row i of ``a``; same dtype and device.
        temperature: see the module; 1 / CLIP's logit scale.
        false_negatives: see the module; a per-row threshold holds for row i of either direction, a pair of ``labels``
            is (of a, of b).
        normalize: see the module.
        reduction: see the module; ``"none"`` gives the mean of both directions of each row.
        impl: see the module.

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
    there = Pairs(positive_offset=0).with_false_negatives(false_negatives, (rows, rows), a.device)
    back = there._replace(clusters=there.candidate_clusters, candidate_clusters=there.clusters)
    losses = (
        _loss("clip_loss", a, b, temperature, normalize, there, reduction, impl),
        _loss("clip_loss", b, a, temperature, normalize, back, reduction, impl),
    )
    return (losses[0] + losses[1]) / 2


def _loss(
    op: str,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: float | Tensor,
    normalize: bool,
    pairs: Pairs,
    reduction: str,
    impl: str,
) -> Tensor:
    arguments.check_choice("reduction", reduction, (*_REDUCTIONS, "mean_valid") if op == "sup_con" else _REDUCTIONS)
    features = pairs.features(anchors.shape[1])
    chosen = dispatch.resolve(op, impl, device=anchors.device, dtype=anchors.dtype, **features)
    scale = arguments.split_temperature(temperature)
    loss, num_positives, _ = ops.forward_op(anchors, candidates, *scale, normalize, chosen, *pairs)
    return _reduce(loss, num_positives, reduction)


def _reduce(loss: Tensor, num_positives: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(loss.shape[0], 1)
    return loss.sum() / (num_positives > 0).sum().clamp_min(1)


def _check_positives(positives: Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    index = arguments.check_integers("positives", positives, [rows], device)
    if arguments.values_readable(index):
        wrong = index[(index < -1) | (index >= columns)]
        if wrong.numel():
            raise ValueError(f"positives must be candidate indices in [-1, {columns}), found {wrong[0].item()}")
    return index
