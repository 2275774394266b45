"""Which pairs are positive, excluded or false negatives, described by O(M + N) values instead of M x N masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arguments


@dataclass(frozen=True, eq=False)
class FalseNegatives:
    """Which negatives of a row are probably no negatives, and what becomes of them.

    A row's own embedding and its true positives are never affected. The choice is a constant: no gradient flows
    through the comparison. Cosines are compared even when the loss runs with ``normalize=False``.

    Attributes:
        threshold: cosine above which (strictly) a pair is a false negative: float in [-1, 1], 0-d tensor, or one per
            row of the anchors ([M]); ``inf`` means never.
        topk: the k most similar negatives of a row (more if several tie for place k).
        labels: pseudo-labels or cluster ids, integers; equal ones make a pair a false negative, a negative one means
            unknown and matches nothing. One tensor where row i of the anchors and of the candidates show the same
            image ([M]; for ``nt_xent`` also one per image), else a pair ``(of anchors [M], of candidates [N])``.
        combine: ``"or"`` = one of the given rules suffices, ``"and"`` = all of them must hold.
        treatment: ``"eliminate"`` leaves the pairs out, ``"attract"`` makes them positives, each with the weight of a
            true one, ``"weight"`` multiplies their term of the denominator by ``weight``.
        weight: see ``treatment``; finite, at least 0.
    """

    threshold: float | Tensor | None = None
    topk: int | None = None
    labels: Tensor | tuple[Tensor, Tensor] | None = None
    combine: Literal["or", "and"] = "or"
    treatment: Literal["eliminate", "attract", "weight"] = "eliminate"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.threshold is None and self.topk is None and self.labels is None:
            raise ValueError("FalseNegatives needs a rule: give threshold, topk or labels")
        arguments.check_choice("combine", self.combine, ("or", "and"))
        arguments.check_choice("treatment", self.treatment, ("eliminate", "attract", "weight"))
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and at least 0, got {self.weight}")
        if self.weight != 1.0 and self.treatment != "weight":
            raise ValueError(f"weight is for treatment='weight' only, got weight={self.weight} with {self.treatment!r}")
        if self.topk is not None:
            arguments.check_count("topk", self.topk, 1)
        if self.threshold is not None:
            _check_threshold(self.threshold)


def _check_threshold(threshold: float | Tensor) -> None:
    if isinstance(threshold, Tensor):
        if not threshold.is_floating_point() or threshold.ndim > 1:
            found = f"{list(threshold.shape)} {threshold.dtype}"
            raise ValueError(f"threshold must be a float or a 0-d or [M] floating-point tensor, got {found}")
        if not arguments.values_readable(threshold):
            return
        values = threshold.detach()
        wrong = values[~((values.abs() <= 1) | (values == math.inf))]
        if wrong.numel():
            raise ValueError(f"threshold must hold cosines in [-1, 1] (or inf: never), found {wrong[0].item()}")
    elif isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a float or a tensor, got {type(threshold).__name__}")
    elif not (-1.0 <= threshold <= 1.0 or threshold == math.inf):
        raise ValueError(f"threshold must be a cosine in [-1, 1] (or inf: never), got {threshold}")


class Pairs(NamedTuple):
    """The rules of one call, as the ops take them. Row i is an anchor, column j a candidate.

    Attributes:
        self_offset: column ``i + self_offset`` is row i itself and is excluded; -1 = no such column.
        positive_offset: column ``i + positive_offset`` is positive; -1 = no such column.
        positive_index: int64 [M], a positive column of each row, -1 = none.
        groups: int64 [M]; columns of the same group are positive.
        candidate_groups: int64 [N]; None = ``groups`` (candidates are the anchors).
        threshold: columns with a larger cosine are false negatives.
        row_threshold: the same as a 0-d or [M] tensor.
        topk: so many largest cosines are false negatives; 0 = none.
        clusters: int64 [M]; columns of the same cluster >= 0 are false negatives.
        candidate_clusters: int64 [N].
        all_rules: a false negative must satisfy all rules given, not one.
        treatment: ``"eliminate"``, ``"attract"`` or ``"weight"``.
        weight: of a false negative in the denominator, for ``"weight"``.
    """

    self_offset: int = -1
    positive_offset: int = -1
    positive_index: Tensor | None = None
    groups: Tensor | None = None
    candidate_groups: Tensor | None = None
    threshold: float | None = None
    row_threshold: Tensor | None = None
    topk: int = 0
    clusters: Tensor | None = None
    candidate_clusters: Tensor | None = None
    all_rules: bool = False
    treatment: str = "eliminate"
    weight: float = 1.0

    def with_false_negatives(
        self, rule: FalseNegatives | None, shape: tuple[int, int], device: torch.device, *, views: int = 1
    ) -> Pairs:
        """These pairs with a false-negative rule, checked against the [M, N] of the call.

        ``views``: labels may also be given once per image, for M = views * images rows in view-major order.
        """
        if rule is None:
            return self
        if not isinstance(rule, FalseNegatives):
            raise TypeError(f"false_negatives must be a FalseNegatives or None, got {type(rule).__name__}")
        clusters, candidate_clusters = _clusters(rule, shape, device, views)
        threshold = rule.threshold
        if isinstance(threshold, Tensor):
            if threshold.ndim == 1 and threshold.shape[0] != shape[0]:
                raise ValueError(f"threshold must have one value per row, [{shape[0]}], got {list(threshold.shape)}")
            if threshold.ndim == 1 and threshold.device != device:
                raise ValueError(f"threshold must be on {device} like the embeddings, got {threshold.device}")
        return self._replace(
            threshold=None if isinstance(threshold, Tensor) else threshold,
            row_threshold=threshold.detach() if isinstance(threshold, Tensor) else None,
            topk=rule.topk or 0,
            clusters=clusters,
            candidate_clusters=candidate_clusters,
            all_rules=rule.combine == "and",
            treatment=rule.treatment,
            weight=rule.weight,
        )

    def features(self, width: int) -> dict[str, str]:
        """What these pairs of rows of ``width`` dimensions ask of an implementation, as ``dispatch.resolve`` has it."""
        return {
            "topk": "yes" if self.topk else "no",
            "treatment": self.treatment,
            "width": "up to 512" if width <= 512 else "above 512",
        }


SCHEMA = (
    "int self_offset, int positive_offset, Tensor? positive_index, Tensor? groups, Tensor? candidate_groups, "
    "float? threshold, Tensor? row_threshold, int topk, Tensor? clusters, Tensor? candidate_clusters, "
    "bool all_rules, str treatment, float weight"
)
"""The fields of ``Pairs`` in order, as op arguments."""


def _clusters(
    rule: FalseNegatives, shape: tuple[int, int], device: torch.device, views: int
) -> tuple[Tensor | None, Tensor | None]:
    """The labels of the anchors [M] and of the candidates [N]."""
    rows, columns = shape
    if rule.labels is None:
        return None, None
    if isinstance(rule.labels, tuple):
        if len(rule.labels) != 2:
            raise ValueError(f"labels must be a tensor or a pair of tensors, got a tuple of {len(rule.labels)}")
        of_rows, of_columns = rule.labels
        return (
            arguments.check_integers("labels[0]", of_rows, [rows], device),
            arguments.check_integers("labels[1]", of_columns, [columns], device),
        )
    if rows != columns:
        raise ValueError(f"labels must be a pair (of anchors [{rows}], of candidates [{columns}]) when M and N differ")
    labels = arguments.check_integers("labels", rule.labels, [rows, rows // views] if views > 1 else [rows], device)
    labels = labels if labels.shape[0] == rows else labels.repeat(views)
    return labels, labels
