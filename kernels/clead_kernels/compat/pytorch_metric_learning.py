"""``SupConLoss`` and ``NTXentLoss`` of pytorch-metric-learning, on ``sup_con``.

https://github.com/KevinMusgrave/pytorch-metric-learning; both also work inside that library's ``CrossBatchMemory`` and
``SelfSupervisedLoss``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .. import _arguments as arguments
from .. import dispatch
from ..contrastive import sup_con


class _Pairs(NamedTuple):
    """Which rows meet which, as ``sup_con`` takes it, and how many positives there are.

    Attributes:
        labels: int64 [M].
        candidates: [N, d], or None where the rows meet each other; ``candidate_labels``, ``self_index`` likewise.
        candidate_labels: int64 [N].
        self_index: int64 [M].
        num_positives: int64 [M].
        any_loss: bool 0-d, whether the library computes a loss at all: not without positive or negative pairs, nor for
            a single one of each.
    """

    labels: Tensor
    candidates: Tensor | None
    candidate_labels: Tensor | None
    self_index: Tensor | None
    num_positives: Tensor
    any_loss: Tensor


class _LossOfPairs(nn.Module):
    """What both losses take; labels say which pairs are positive, all others are negative."""

    def __init__(
        self,
        temperature: float | Tensor,
        *,
        distance: nn.Module | None = None,
        impl: dispatch.Impl = "auto",
        **unsupported: object,
    ) -> None:
        super().__init__()
        for name, value in unsupported.items():
            if value is not None:
                raise NotImplementedError(f"{name} is not supported, expected None, got {type(value).__name__}")
        self.temperature = temperature
        self.normalize = _normalizes(distance)
        self.impl = impl

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss of all pairs; 0 where there are no positive or no negative pairs.

        Args:
            embeddings: [M, d].
            labels: integers [M]; required, also with ``indices_tuple``.
            indices_tuple: (anchors, positives, anchors, negatives) with all pairs that the labels make, less one column
                per row or none, the row itself: what ``CrossBatchMemory`` passes. Selections of a miner are refused.
            ref_emb: [N, d], another set to meet; None = the embeddings meet each other, without the diagonal.
            ref_labels: integers [N], required with ``ref_emb``; where it is the same tensor as ``labels``, column i is
                taken for row i itself and left out, as in the library.

        Returns:
            0-d loss; float64 for float64 embeddings, else float32.

        Raises:
            NotImplementedError: no labels, or an ``indices_tuple`` with other pairs than these.
            ValueError: wrong shapes.
        """
        pairs = _pairs(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return self._reduced(embeddings, pairs) * pairs.any_loss

    def _reduced(self, embeddings: Tensor, pairs: _Pairs) -> Tensor:
        raise NotImplementedError

    def _rows(
        self,
        embeddings: Tensor,
        pairs: _Pairs,
        denominator: Literal["all", "own_positive"] = "all",
        positives_reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        return sup_con(
            embeddings,
            pairs.labels,
            temperature=self.temperature,
            candidates=pairs.candidates,
            candidate_labels=pairs.candidate_labels,
            self_index=pairs.self_index,
            positives_reduction=positives_reduction,
            denominator=denominator,
            normalize=self.normalize,
            reduction="none",
            impl=self.impl,
        )


class SupConLoss(_LossOfPairs):
    """Supervised contrastive loss L_out (Khosla et al., arXiv 2004.11362, eq. 2), mean of the rows above 0.

    Attributes:
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        normalize: whether rows are divided by their norms: yes, unless ``distance`` is a ``DotProductSimilarity`` that
            does not.
        impl: which implementation, see ``clead_kernels.explain``.

    Example:
        >>> loss = SupConLoss(temperature=0.1)(embeddings, labels)
    """

    def __init__(self, temperature: float | Tensor = 0.1, **options: Any) -> None:
        super().__init__(temperature, **options)

    def _reduced(self, embeddings: Tensor, pairs: _Pairs) -> Tensor:
        rows = self._rows(embeddings, pairs)
        return rows.sum() / (rows > 0).sum().clamp_min(1)


class NTXentLoss(_LossOfPairs):
    """The mean over positive pairs of ``-log(exp(s_ap) / (exp(s_ap) + sum_n exp(s_an)))``, n the negatives of a.

    Other positives of a are not in the denominator.

    Attributes:
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        normalize: as in ``SupConLoss``.
        impl: which implementation, see ``clead_kernels.explain``.

    Example:
        >>> loss = NTXentLoss(temperature=0.5)(embeddings, labels)
    """

    def __init__(self, temperature: float | Tensor = 0.07, **options: Any) -> None:
        super().__init__(temperature, **options)

    def _reduced(self, embeddings: Tensor, pairs: _Pairs) -> Tensor:
        # With at most one positive per row both denominators are the same, and "all" has faster implementations.
        single = arguments.values_readable(embeddings) and not bool((pairs.num_positives > 1).any())
        rows = self._rows(embeddings, pairs, "all" if single else "own_positive", "sum")
        return rows.sum() / pairs.num_positives.sum().clamp_min(1)


def _normalizes(distance: nn.Module | None) -> bool:
    if distance is None:
        return True
    name, power, p = type(distance).__name__, getattr(distance, "power", 1), getattr(distance, "p", 2)
    if name not in ("CosineSimilarity", "DotProductSimilarity") or power != 1 or p != 2:
        expected = "None, CosineSimilarity or DotProductSimilarity, with p=2 and power=1"
        raise NotImplementedError(f"distance must be {expected}, got {name} with p={p} and power={power}")
    return bool(distance.normalize_embeddings)


def _pairs(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: Sequence[Tensor] | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> _Pairs:
    arguments.check_rows("embeddings", embeddings)
    if labels is None:
        raise NotImplementedError("labels must be given, they say which pairs are positive, got None")
    rows, device = len(embeddings), embeddings.device
    same_rows = ref_labels is labels
    labels = arguments.check_integers("labels", labels.to(device), [rows], device)
    candidates, of_candidates = embeddings, labels
    if ref_emb is not None:
        if ref_labels is None:
            raise ValueError("ref_emb needs ref_labels, got None")
        candidates = ref_emb
        of_candidates = arguments.check_integers("ref_labels", ref_labels.to(device), [len(ref_emb)], device)
    if indices_tuple is not None:
        itself = _left_out(indices_tuple, labels, of_candidates)
    else:
        itself = torch.arange(rows, device=device) if ref_emb is None or same_rows else None
    ordered = of_candidates.sort().values
    found = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    num_positives = found if itself is None else found - 1
    positives, negatives = num_positives.sum(), rows * len(candidates) - found.sum()
    any_loss = (positives > 0) & (negatives > 0) & (positives + negatives > 2)
    if ref_emb is None and indices_tuple is None:
        return _Pairs(labels, None, None, None, num_positives, any_loss)
    return _Pairs(labels, candidates, of_candidates, itself, num_positives, any_loss)


def _left_out(indices_tuple: Sequence[Tensor], labels: Tensor, of_candidates: Tensor) -> Tensor | None:
    """int64 [M], the column that the list of pairs leaves out for each row; None = it leaves out nothing.

    The sum of a row's columns tells the one that is missing. Values are looked at on every device: whoever listed the
    pairs has waited for them already.
    """
    rows, columns = len(labels), len(of_candidates)
    expected = f"all {rows} x {columns} pairs of the labels, less one per row, the row itself"
    if len(indices_tuple) != 4:
        raise NotImplementedError(f"indices_tuple must hold {expected}, got a tuple of {len(indices_tuple)}")
    anchors, positives, negative_anchors, negatives = (x.to(labels.device) for x in indices_tuple)
    found = len(positives) + len(negatives)
    if found not in (rows * columns, rows * (columns - 1)):
        raise NotImplementedError(f"indices_tuple must hold {expected}, got {found} pairs")
    count, total, right = torch.zeros_like(labels), torch.zeros_like(labels), []
    for row, column, alike in ((anchors, positives, True), (negative_anchors, negatives, False)):
        count.index_add_(0, row, torch.ones_like(row))
        total.index_add_(0, row, column)
        right += [((labels[row] == of_candidates[column]) == alike).all(), _distinct(row * columns + column)]
    right.append((count * rows == found).all())
    if not all(right):
        raise NotImplementedError(f"indices_tuple must hold {expected}, got other pairs")
    if found == rows * columns:
        return None
    missing = columns * (columns - 1) // 2 - total
    if not (labels == of_candidates[missing]).all():
        raise NotImplementedError(f"indices_tuple must hold {expected}, but it leaves out pairs of different labels")
    return missing


def _distinct(keys: Tensor) -> bool:
    """Whether no key comes twice; lists made by ``torch.where`` are in order already."""
    return bool((keys.diff() > 0).all()) or bool((keys.sort().values.diff() > 0).all())
