"""Which negatives a rule cancels: counts, and how right it is where the classes are known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arguments
from .._rows import full_precision, unit_rows
from . import reference
from .false_negatives import FalseNegatives
from .pairs import Pairs

_CHUNK = 1 << 22  # pairs looked at together


class Cancelled(NamedTuple):
    """What a false-negative rule does to a batch.

    Attributes:
        counts: int64 [M], cancelled negatives of each row.
        precision: 0-d float64, the share of cancelled pairs that are of one class; NaN if none is cancelled, or if no
            labels are given.
        recall: 0-d float64, the share of the negatives of one class that are cancelled; NaN alike.
    """

    counts: Tensor
    precision: Tensor
    recall: Tensor


def cancelled(
    embeddings: Tensor,
    false_negatives: FalseNegatives,
    *,
    candidates: Tensor | None = None,
    num_views: int = 2,
    labels: Tensor | None = None,
    candidate_labels: Tensor | None = None,
) -> Cancelled:
    """The negatives that ``false_negatives`` eliminates, attracts or weighs in ``nt_xent`` or in ``info_nce``.

    Holds 4 million pairs at a time, never all of them. Carries no gradient and does not wait for the device.

    Args:
        embeddings: [M, d], float64, float32, bfloat16 or float16; view-major as in ``nt_xent``.
        false_negatives: the rule.
        candidates: [N, d] as in ``info_nce`` with candidate i positive for row i; None = ``nt_xent`` of the embeddings.
        num_views: 2, 3 or 4 views of each image, without ``candidates``.
        labels: integers [M], the true classes (without ``candidates`` also one per image).
        candidate_labels: integers [N], required with ``candidates`` and ``labels``.

    Returns:
        Counts, precision and recall.

    Raises:
        ValueError: shapes, devices or values do not fit.
        TypeError: a type or dtype does not fit.

    Example:
        >>> rule = FalseNegatives(threshold=0.9)
        >>> cancelled(embeddings, rule, labels=labels).precision
    """
    arguments.check_rows("embeddings", embeddings)
    pairs = _pairs(embeddings, candidates, num_views, false_negatives)
    classes = _classes(embeddings, candidates, num_views, labels, candidate_labels)
    with torch.no_grad(), full_precision(embeddings.device):
        rows = unit_rows(embeddings)
        others = rows if candidates is None else unit_rows(candidates)
        totals = torch.zeros(3, dtype=torch.float64, device=rows.device)
        step, counts = max(1, _CHUNK // max(1, len(others))), [totals.new_zeros(0, dtype=torch.int64)]
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            _, negative, found = reference.masks(part, others, pairs.rows(start, start + step), part @ others.mT)
            counts.append(found.sum(1))
            if classes is not None:
                same = classes[0][start : start + step, None] == classes[1]
                hits, possible = (found & same).sum(), ((negative | found) & same).sum()
                totals += torch.stack([hits, found.sum(), possible])
    return Cancelled(torch.cat(counts), totals[0] / totals[1], totals[0] / totals[2])


def _pairs(embeddings: Tensor, candidates: Tensor | None, num_views: int, rule: FalseNegatives) -> Pairs:
    if not isinstance(rule, FalseNegatives):
        raise TypeError(f"false_negatives must be a FalseNegatives, got {type(rule).__name__}")
    if candidates is None:
        pairs = Pairs.of_views(embeddings, num_views).spelled_out(len(embeddings), embeddings.device)
        shape = (len(embeddings), len(embeddings))
        return pairs.with_false_negatives(rule, shape, embeddings.device, views=num_views)
    arguments.check_rows("candidates", candidates)
    arguments.check_alike("embeddings", embeddings, "candidates", candidates)
    return Pairs(positive_offset=0).with_false_negatives(rule, (len(embeddings), len(candidates)), embeddings.device)


def _classes(
    embeddings: Tensor,
    candidates: Tensor | None,
    num_views: int,
    labels: Tensor | None,
    candidate_labels: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """The classes of rows and candidates."""
    if labels is None or (candidates is None) != (candidate_labels is None):
        if labels is not None or candidate_labels is not None:
            raise ValueError("labels and candidate_labels must be given for embeddings and candidates alike")
        return None
    rows, device = len(embeddings), embeddings.device
    if candidates is not None and candidate_labels is not None:
        return (
            arguments.check_integers("labels", labels, [rows], device),
            arguments.check_integers("candidate_labels", candidate_labels, [len(candidates)], device),
        )
    labels = arguments.check_integers("labels", labels, [rows, rows // num_views], device)
    labels = labels if len(labels) == rows else labels.repeat(num_views)
    return labels, labels
