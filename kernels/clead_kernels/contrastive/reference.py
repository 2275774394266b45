"""The contrastive family in eager PyTorch: the specification. It builds the [M, N] matrices.

With s_ij = <a_i, b_j> / temperature, P_i the positives of row i, Q_i its negatives and k_ij the weight of a negative in
the denominator (1; 0 or a weight for false negatives), the plain form is

    loss_i = log(sum_{j in P_i} e^s_ij + sum_{j in Q_i} k_ij e^s_ij) - mean_{j in P_i} s_ij    (0 where P_i is empty)

It is evaluated as ``softplus(n_i - p_i) + p_i``, where n_i and p_i are the logsumexp over negatives and over positives
of s_ij minus the mean positive logit. Both terms are >= 0 and nothing cancels: with one positive p_i is exactly 0, so
the loss and its gradient keep full relative accuracy when the positive dominates. All forms are made of the same n_i
and p_i, see ``reference_forms``.
"""

from __future__ import annotations

import math
import operator
from functools import reduce

import torch
from torch import Tensor

from .._rows import full_precision, unit_rows, working_rows, working_rows_backward
from . import reference_forms as forms
from .form import Form
from .pairs import Pairs


def forward(
    anchors: Tensor, candidates: Tensor | None, temperature: Tensor | float, normalize: bool, pairs: Pairs, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row.

    Args:
        anchors: [M, d].
        candidates: [N, d], or None: the anchors.
        temperature: float or 0-d tensor.
        normalize: divide rows by their norms first.
        pairs: which pairs are what.
        form: what the loss makes of them.

    Returns:
        loss [M] and, for ``backward``, statistics [2, M] = (n, p), in the working dtype; between them the number of
        positives, int64 [M].
    """
    with full_precision(anchors.device):
        a, b = _rows(anchors, candidates, normalize)
        row = _pieces(_scores(a, b, form), anchors, candidates, temperature, normalize, pairs, form)
        row = forms.reweigh(row, form)
        return forms.losses(row, form), row.num_positives, torch.stack([row.over_negatives, row.over_positives])


def backward(
    grad_loss: Tensor,
    statistics: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: Tensor | float,
    normalize: bool,
    pairs: Pairs,
    form: Form,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. anchors, candidates and temperature (in the working dtype); empty where ``needs`` says no."""
    with full_precision(anchors.device):
        a, b = _rows(anchors, candidates, normalize)
        temperature = _on(temperature, a)
        row = _pieces(_scores(a, b, form), anchors, candidates, temperature, normalize, pairs, form, statistics)
        grad_logits, grad_lowest = forms.grad_logits(row, form)
        grad_logits = grad_logits * grad_loss.to(a.dtype)[:, None]
        grad_scores = grad_logits / temperature
        grad_anchors, grad_candidates, grad_temperature = (a.new_empty(0) for _ in range(3))
        if needs[0]:
            grad_rows = _through_scores(grad_scores, a, b, form)
            if candidates is None:
                grad_rows = grad_rows + _through_scores(grad_scores.mT, a, b, form)
            grad_anchors = working_rows_backward(grad_rows, anchors, normalize)
        if needs[1] and candidates is not None:
            grad_candidates = working_rows_backward(_through_scores(grad_scores.mT, b, a, form), candidates, normalize)
        if needs[2]:
            # Rows of the gradient, floor included, sum to 0: the centred logits serve, and a dominant positive adds 0.
            by_row = (grad_logits * row.logits).sum(1) + grad_loss.to(a.dtype) * grad_lowest * row.lowest
            grad_temperature = -by_row.sum() / temperature
        return grad_anchors, grad_candidates, grad_temperature


def masks(
    anchors: Tensor, candidates: Tensor | None, pairs: Pairs, cosine: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Positives, negatives that count, and what the rules call false negatives: bool [M, N] each.

    Attracted false negatives are among the positives, weighted ones among the negatives, eliminated ones in neither.
    ``cosine`` [M, N] is computed if a rule needs it and it is not given.
    """
    others = anchors if candidates is None else candidates
    row = torch.arange(anchors.shape[0], device=anchors.device)[:, None]
    column = torch.arange(others.shape[0], device=anchors.device)[None, :]
    nothing = (row < 0) & (column < 0)
    itself = column == row + pairs.self_offset if pairs.self_offset >= 0 else nothing
    positive = column == row + pairs.positive_offset if pairs.positive_offset >= 0 else nothing
    if pairs.self_index is not None:
        itself = itself | (column == pairs.self_index[:, None])
    if pairs.positive_index is not None:
        positive = positive | (column == pairs.positive_index[:, None])
    if pairs.groups is not None:
        groups = pairs.groups if pairs.candidate_groups is None else pairs.candidate_groups
        positive = positive | (pairs.groups[:, None] == groups[None, :])
    positive = positive & ~itself
    negative = ~(positive | itself)
    if cosine is None and (pairs.threshold is not None or pairs.row_threshold is not None or pairs.topk > 0):
        cosine = unit_rows(anchors) @ unit_rows(others).mT
    false_negative = _false_negatives(cosine, negative, pairs)
    if pairs.treatment == "attract":
        positive, negative = positive | false_negative, negative & ~false_negative
    elif pairs.treatment == "eliminate" or pairs.weight == 0.0:
        negative = negative & ~false_negative
    return positive, negative, false_negative


def _false_negatives(cosine: Tensor | None, negative: Tensor, pairs: Pairs) -> Tensor:
    """The negatives that the rules call false ones: bool [M, N]."""
    rules = []
    threshold = pairs.threshold if pairs.row_threshold is None else pairs.row_threshold
    if cosine is not None and threshold is not None:
        if isinstance(threshold, Tensor):
            threshold = threshold.to(cosine.device, cosine.dtype).reshape(-1, 1)
        rules.append(cosine > threshold)
    if cosine is not None and pairs.topk > 0:
        eligible = cosine.masked_fill(~negative, -torch.inf)
        cut = eligible.topk(min(pairs.topk, cosine.shape[1]), dim=1).values[:, -1:]
        rules.append(eligible >= cut)
    if pairs.clusters is not None and pairs.candidate_clusters is not None:
        of_rows, of_columns = pairs.clusters[..., :, None], pairs.candidate_clusters[..., None, :]
        same = (of_rows >= 0) & (of_rows == of_columns)
        rules.append(same if same.ndim == 2 else same.all(0) if pairs.each_level else same.any(0))
    if not rules:
        return torch.zeros_like(negative)
    return negative & reduce(operator.and_ if pairs.all_rules else operator.or_, rules)


def _pieces(
    scores: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: Tensor | float,
    normalize: bool,
    pairs: Pairs,
    form: Form,
    statistics: Tensor | None = None,
) -> forms.Pieces:
    """All rows of a call, with n and p from ``statistics``, or those of the plain form."""
    cosine = scores if normalize and form.metric == "cosine" else None
    positive, negative, false_negative = masks(anchors, candidates, pairs, cosine)
    count, temperature = positive.sum(1), _on(temperature, scores)
    # One constant per row, the mean positive logit, changes neither loss nor gradient.
    mean = torch.where(positive, scores, 0.0).sum(1) / count.clamp_min(1)
    logits = (scores - mean[:, None]) / temperature
    weighted = _weighted(logits, negative, false_negative, pairs)
    if statistics is None:
        statistics = torch.stack([weighted.logsumexp(1), logits.masked_fill(~positive, -torch.inf).logsumexp(1)])
    return forms.Pieces(logits, weighted, positive, count, (-1.0 - mean) / temperature, statistics[0], statistics[1])


def _scores(a: Tensor, b: Tensor, form: Form) -> Tensor:
    """Inner products, or minus the squared distances: [M, N]."""
    if form.metric == "cosine":
        return a @ b.mT
    return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def _through_scores(grad_scores: Tensor, own: Tensor, other: Tensor, form: Form) -> Tensor:
    """The gradient w.r.t. ``own`` rows from that w.r.t. the scores [own, other]."""
    if form.metric == "cosine":
        return grad_scores @ other
    return 2.0 * (grad_scores @ other - grad_scores.sum(1, keepdim=True) * own)


def _weighted(logits: Tensor, negative: Tensor, false_negative: Tensor, pairs: Pairs) -> Tensor:
    """log(k_ij e^s_ij): -inf for pairs that do not count."""
    if pairs.treatment == "weight" and pairs.weight > 0.0:
        logits = torch.where(false_negative, logits + math.log(pairs.weight), logits)
    return logits.masked_fill(~negative, -torch.inf)


def _rows(anchors: Tensor, candidates: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor]:
    rows = [working_rows(x, normalize) for x in (anchors, candidates) if x is not None]
    return rows[0], rows[-1]


def _on(temperature: Tensor | float, a: Tensor) -> Tensor | float:
    return temperature.to(a.device, a.dtype) if isinstance(temperature, Tensor) else temperature
