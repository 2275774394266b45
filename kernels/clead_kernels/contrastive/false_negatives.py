"""The rules that say which negatives are probably no negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
            Several granularities are rows of one tensor, [L, M].
        levels: for several granularities: ``"any"`` = equal labels at one of them suffice, ``"each"`` = at all of them.
        combine: ``"or"`` = one of the given rules suffices, ``"and"`` = all of them must hold.
        treatment: ``"eliminate"`` leaves the pairs out, ``"attract"`` makes them positives, each with the weight of a
            true one, ``"weight"`` multiplies their term of the denominator by ``weight``.
        weight: see ``treatment``; finite, at least 0.
    """

    threshold: float | Tensor | None = None
    topk: int | None = None
    labels: Tensor | tuple[Tensor, Tensor] | None = None
    levels: Literal["any", "each"] = "any"
    combine: Literal["or", "and"] = "or"
    treatment: Literal["eliminate", "attract", "weight"] = "eliminate"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.threshold is None and self.topk is None and self.labels is None:
            raise ValueError("FalseNegatives needs a rule: give threshold, topk or labels")
        arguments.check_choice("levels", self.levels, ("any", "each"))
        arguments.check_choice("combine", self.combine, ("or", "and"))
        arguments.check_choice("treatment", self.treatment, ("eliminate", "attract", "weight"))
        arguments.check_real("weight", self.weight)
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and at least 0, got {self.weight}")
        if self.weight != 1.0 and self.treatment != "weight":
            raise ValueError(f"weight is for treatment='weight' only, got weight={self.weight} with {self.treatment!r}")
        if self.topk is not None:
            arguments.check_count("topk", self.topk, 1)
        if self.threshold is not None:
            _check_threshold(self.threshold)

    def clusters(
        self, shape: tuple[int, int], device: torch.device, views: int = 1
    ) -> tuple[Tensor | None, Tensor | None]:
        """The labels of the anchors and of the candidates of a call with M, N = ``shape``, checked; see ``Pairs``."""
        rows, columns = shape
        if self.labels is None:
            return None, None
        if isinstance(self.labels, tuple):
            if len(self.labels) != 2:
                raise ValueError(f"labels must be a tensor or a pair of tensors, got a tuple of {len(self.labels)}")
            of_rows = _check_labels("labels[0]", self.labels[0], [rows], device)
            of_columns = _check_labels("labels[1]", self.labels[1], [columns], device)
            if of_rows.shape[:-1] != of_columns.shape[:-1]:
                found = f"{list(of_rows.shape)} and {list(of_columns.shape)}"
                raise ValueError(f"labels must have the same granularities for anchors and candidates, got {found}")
            return of_rows, of_columns
        if rows != columns:
            expected = f"a pair (of anchors [{rows}], of candidates [{columns}])"
            raise ValueError(f"labels must be {expected} when M and N differ")
        labels = _check_labels("labels", self.labels, [rows, rows // views] if views > 1 else [rows], device)
        labels = labels if labels.shape[-1] == rows else torch.cat([labels] * views, -1)
        return labels, labels


def _check_labels(name: str, labels: Tensor, lengths: list[int], device: torch.device) -> Tensor:
    """int64 [n], or [L, n] for several granularities."""
    if isinstance(labels, Tensor) and not labels.is_nested and labels.ndim == 2 and labels.shape[0] > 0:
        arguments.check_integers(f"every row of {name}", labels[0], lengths, device)
        return labels.to(torch.int64) if labels.shape[0] > 1 else labels[0].to(torch.int64)
    return arguments.check_integers(name, labels, lengths, device)


def _check_threshold(threshold: float | Tensor) -> None:
    if isinstance(threshold, Tensor):
        arguments.check_dense("threshold", threshold)
        if not threshold.is_floating_point() or threshold.ndim > 1:
            found = f"{list(threshold.shape)} {threshold.dtype}"
            raise ValueError(f"threshold must be a float or a 0-d or [M] floating-point tensor, got {found}")
        if not arguments.values_readable(threshold):
            return
        values = threshold.detach()
        wrong = values[~((values.abs() <= 1) | (values == math.inf))]
        if wrong.numel():
            raise ValueError(f"threshold must hold cosines in [-1, 1] (or inf: never), found {wrong[0].item()}")
        return
    arguments.check_real("threshold", threshold, "a float or a tensor")
    if not (-1.0 <= threshold <= 1.0 or threshold == math.inf):
        raise ValueError(f"threshold must be a cosine in [-1, 1] (or inf: never), got {threshold}")
