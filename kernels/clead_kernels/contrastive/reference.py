"""The contrastive family in eager PyTorch: the specification. It builds the [M, N] matrices.

With s_ij = <a_i, b_j> / temperature, P_i the positives of row i, Q_i its negatives and k_ij the weight of a negative in
the denominator (1; 0 or a weight for false negatives):

    loss_i = log(sum_{j in P_i} e^s_ij + sum_{j in Q_i} k_ij e^s_ij) - mean_{j in P_i} s_ij    (0 where P_i is empty)

It is evaluated as ``softplus(n_i - p_i) + p_i``, where n_i and p_i are the logsumexp over negatives and over positives
of s_ij minus the mean positive logit. Both terms are >= 0 and nothing cancels: with one positive p_i is exactly 0, so
the loss and its gradient keep full relative accuracy when the positive dominates.
"""

from __future__ import annotations

import math
import operator
from functools import reduce

import torch
from torch import Tensor

from .._rows import full_precision, unit_rows, unit_rows_backward, working_dtype
from .pairs import Pairs


def forward(
    anchors: Tensor, candidates: Tensor | None, temperature: Tensor | float, normalize: bool, pairs: Pairs
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row.

    Args:
        anchors: [M, d].
        candidates: [N, d], or None: the anchors.
        temperature: float or 0-d tensor.
        normalize: divide rows by their norms first.
        pairs: which pairs are what.

    Returns:
        loss [M] and, for ``backward``, statistics [2, M] = (n, p), in the working dtype; between them the number of
        positives, int64 [M].
    """
    with full_precision(anchors.device):
        a, b = _rows(anchors, candidates, normalize)
        dots = a @ b.mT
        positive, negative, false_negative = masks(anchors, candidates, pairs, dots if normalize else None)
        count = positive.sum(1)
        logits = _centred_logits(dots, positive, count, _on(temperature, a))
        over_negatives = _weighted(logits, negative, false_negative, pairs).logsumexp(1)
        over_positives = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
        loss = _softplus(over_negatives - over_positives) + over_positives
        return torch.where(count > 0, loss, 0.0), count, torch.stack([over_negatives, over_positives])


def backward(
    grad_loss: Tensor,
    statistics: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: Tensor | float,
    normalize: bool,
    pairs: Pairs,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. anchors, candidates and temperature (in the working dtype); empty where ``needs`` says no."""
    with full_precision(anchors.device):
        a, b = _rows(anchors, candidates, normalize)
        dots, temperature = a @ b.mT, _on(temperature, a)
        positive, negative, false_negative = masks(anchors, candidates, pairs, dots if normalize else None)
        count = positive.sum(1)
        logits = _centred_logits(dots, positive, count, temperature)
        weighted = _weighted(logits, negative, false_negative, pairs)
        grad_logits = _grad_logits(logits, weighted, positive, negative, count, statistics)
        grad_logits = grad_logits * grad_loss.to(a.dtype)[:, None]
        grad_dots = grad_logits / temperature
        grad_anchors, grad_candidates, grad_temperature = (a.new_empty(0) for _ in range(3))
        if needs[0]:
            grad_rows = grad_dots @ b if candidates is not None else grad_dots @ b + grad_dots.mT @ b
            grad_anchors = _through_rows(grad_rows, anchors, normalize)
        if needs[1] and candidates is not None:
            grad_candidates = _through_rows(grad_dots.mT @ a, candidates, normalize)
        if needs[2]:
            # Rows of grad_logits sum to 0, so the centred logits serve, and a dominant positive adds exactly 0.
            grad_temperature = -(grad_logits * logits).sum() / temperature
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
        known = (pairs.clusters >= 0)[:, None]
        rules.append(known & (pairs.clusters[:, None] == pairs.candidate_clusters[None, :]))
    if not rules:
        return torch.zeros_like(negative)
    return negative & reduce(operator.and_ if pairs.all_rules else operator.or_, rules)


def _centred_logits(dots: Tensor, positive: Tensor, count: Tensor, temperature: Tensor | float) -> Tensor:
    """s_ij minus the mean positive logit of row i; one such constant per row changes neither loss nor gradient."""
    mean = torch.where(positive, dots, 0.0).sum(1) / count.clamp_min(1)
    return (dots - mean[:, None]) / temperature


def _weighted(logits: Tensor, negative: Tensor, false_negative: Tensor, pairs: Pairs) -> Tensor:
    """log(k_ij e^s_ij): -inf for pairs that do not count."""
    if pairs.treatment == "weight" and pairs.weight > 0.0:
        logits = torch.where(false_negative, logits + math.log(pairs.weight), logits)
    return logits.masked_fill(~negative, -torch.inf)


def _grad_logits(
    logits: Tensor, weighted: Tensor, positive: Tensor, negative: Tensor, count: Tensor, statistics: Tensor
) -> Tensor:
    """d loss_i / d s_ij = softmax - 1 / |P_i| on positives, softmax on negatives, 0 elsewhere: [M, N]."""
    over_negatives, over_positives, count = statistics[0, :, None], statistics[1, :, None], count[:, None]
    negative_mass = torch.sigmoid(over_negatives - over_positives)
    grad_negatives = (weighted - over_negatives).exp() * negative_mass
    # softmax - 1 / |P|, split so that a single positive gives exactly minus the mass of the negatives.
    among_positives = (logits - over_positives).exp()
    grad_positives = (among_positives - 1.0 / count.to(logits.dtype)) - among_positives * negative_mass
    grad = torch.where(positive, grad_positives, torch.where(negative, grad_negatives, 0.0))
    return torch.where(count > 0, grad, 0.0)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without the cut that ``torch.nn.functional.softplus`` makes at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _rows(anchors: Tensor, candidates: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor]:
    rows = [unit_rows(x) if normalize else x.to(working_dtype(x.dtype)) for x in (anchors, candidates) if x is not None]
    return rows[0], rows[-1]


def _through_rows(grad_rows: Tensor, x: Tensor, normalize: bool) -> Tensor:
    grad = unit_rows_backward(grad_rows, x) if normalize else grad_rows
    return grad.to(x.dtype, memory_format=torch.contiguous_format)


def _on(temperature: Tensor | float, a: Tensor) -> Tensor | float:
    return temperature.to(a.device, a.dtype) if isinstance(temperature, Tensor) else temperature
