"""Which pairs are positive, excluded or false negatives, described by O(M + N) values instead of M x N masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arguments
from .false_negatives import FalseNegatives


class Pairs(NamedTuple):
    """The rules of one call, as the ops take them. Row i is an anchor, column j a candidate.

    Attributes:
        self_offset: column ``i + self_offset`` is row i itself and is excluded; -1 = no such column.
        self_index: int64 [M], a column that is row i itself and is excluded; -1 = none.
        positive_offset: column ``i + positive_offset`` is positive; -1 = no such column.
        positive_index: int64 [M], a positive column of each row, -1 = none.
        groups: int64 [M]; columns of the same group are positive.
        candidate_groups: int64 [N]; None = ``groups`` (candidates are the anchors).
        threshold: columns with a larger cosine are false negatives.
        row_threshold: the same as a 0-d or [M] tensor.
        topk: so many largest cosines are false negatives; 0 = none.
        clusters: int64 [M]; columns of the same cluster >= 0 are false negatives; [L, M] for several granularities.
        candidate_clusters: int64 [N] or [L, N].
        each_level: clusters must be equal at all granularities, not at one.
        all_rules: a false negative must satisfy all rules given, not one.
        treatment: ``"eliminate"``, ``"attract"`` or ``"weight"``.
        weight: of a false negative in the denominator, for ``"weight"``.
        images: rows of the same remainder by it are positive; -1 = none. Only ``small`` takes it, the others take the
            groups that ``spelled_out`` makes of it.
        both_ways: the M candidates are anchors of the anchors too, and their losses follow: 2M in all. Only ``native``
            takes it, for the pairs of ``positive_offset=0`` and no other rule.
    """

    self_offset: int = -1
    self_index: Tensor | None = None
    positive_offset: int = -1
    positive_index: Tensor | None = None
    groups: Tensor | None = None
    candidate_groups: Tensor | None = None
    threshold: float | None = None
    row_threshold: Tensor | None = None
    topk: int = 0
    clusters: Tensor | None = None
    candidate_clusters: Tensor | None = None
    each_level: bool = False
    all_rules: bool = False
    treatment: str = "eliminate"
    weight: float = 1.0
    images: int = -1
    both_ways: bool = False

    @classmethod
    def of_views(cls, embeddings: Tensor, num_views: int) -> Pairs:
        """The views of an image are each other's positives; row ``v * images + n`` is view v of image n.

        They are described by ``images`` alone.
        """
        arguments.check_count("num_views", num_views, 2, 4)
        rows = embeddings.shape[0]
        if rows % num_views:
            raise ValueError(f"embeddings must have num_views = {num_views} rows per image, got {rows} rows")
        return cls(self_offset=0, images=rows // num_views)

    def spelled_out(self, rows: int, device: torch.device) -> Pairs:
        """These pairs with the groups of ``rows`` embeddings in the place of ``images``."""
        if self.images < 0:
            return self
        return self._replace(groups=torch.arange(rows, device=device) % max(self.images, 1), images=-1)

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
        clusters, candidate_clusters = rule.clusters(shape, device, views)
        threshold = rule.threshold
        if isinstance(threshold, Tensor):
            if threshold.ndim == 1 and threshold.shape[0] != shape[0]:
                raise ValueError(f"threshold must have one value per row, [{shape[0]}], got {list(threshold.shape)}")
            arguments.check_scalar_device("threshold", threshold, device)
            if threshold.ndim == 1 and threshold.device != device:
                raise ValueError(f"threshold must be on {device} like the embeddings, got {threshold.device}")
        return self._replace(
            threshold=None if isinstance(threshold, Tensor) else threshold,
            row_threshold=threshold.detach() if isinstance(threshold, Tensor) else None,
            topk=min(rule.topk or 0, 2**63 - 1),
            clusters=clusters,
            candidate_clusters=candidate_clusters,
            each_level=rule.levels == "each",
            all_rules=rule.combine == "and",
            treatment=rule.treatment,
            weight=rule.weight,
        )

    def rows(self, start: int, stop: int) -> Pairs:
        """The rules of rows ``start`` to ``stop`` alone, for a call with these anchors and all candidates."""

        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[..., start:stop]

        cut = self.row_threshold
        return self._replace(
            self_offset=self.self_offset + start if self.self_offset >= 0 else -1,
            self_index=part(self.self_index),
            positive_offset=self.positive_offset + start if self.positive_offset >= 0 else -1,
            positive_index=part(self.positive_index),
            groups=part(self.groups),
            candidate_groups=self.groups if self.candidate_groups is None else self.candidate_groups,
            row_threshold=cut if cut is None or cut.ndim == 0 else part(cut),
            clusters=part(self.clusters),
        )

    def losses(self, rows: int) -> int:
        """How many losses these pairs of ``rows`` anchors have."""
        return 2 * rows if self.both_ways else rows

    def features(self, width: int) -> dict[str, str]:
        """What these pairs of rows of ``width`` dimensions ask of an implementation, as ``dispatch.resolve`` has it."""
        several = self.clusters is not None and self.clusters.ndim == 2
        return {
            "topk": "no" if not self.topk else "up to 255" if self.topk <= 255 else "above 255",
            "self_index": "no" if self.self_index is None else "yes",
            "levels": "several" if several else "one",
            "treatment": self.treatment,
            "width": "up to 512" if width <= 512 else "above 512",
        }

    def given(self) -> tuple[bool | str, ...]:
        """Which rules there are beside ``features``, each of which makes another kernel."""
        return (
            self.positive_index is None,
            self.groups is None,
            self.candidate_groups is None,
            self.threshold is None,
            self.row_threshold is None,
            self.clusters is None,
            self.each_level,
            self.all_rules,
            # Branches, for what a compiler may not know the value of.
            "below 16" if self.topk < 16 else "below 64" if self.topk < 64 else "more",  # it holds one more
            "left out" if self.weight == 0.0 else "weighted",
        )

    @property
    def compares(self) -> bool:
        """Whether cosines, which every implementation rounds otherwise, decide what is a false negative."""
        return self.threshold is not None or self.row_threshold is not None or self.topk > 0


SCHEMA = (
    "int self_offset, Tensor? self_index, int positive_offset, Tensor? positive_index, Tensor? groups, "
    "Tensor? candidate_groups, float? threshold, Tensor? row_threshold, int topk, Tensor? clusters, "
    "Tensor? candidate_clusters, bool each_level, bool all_rules, str treatment, float weight, int images, "
    "bool both_ways"
)
"""The fields of ``Pairs`` in order, as op arguments."""
