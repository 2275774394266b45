"""From logits to losses and their gradients, row by row, for every form of the loss: part of ``reference``.

Row i has centred logits x_ij = s_ij - mean_{p in P_i} s_ip; N_i is the mass of its negatives, the sum of
k_ij e^x_ij unless the form reweighs them, n_i = log N_i and p_i = log sum_{P_i} e^x_ip. A positive has the
log-probability l_ip = x_ip - log D_ip with the denominator

    D_ip = N_i + sum_{P_i} e^x    ("all")  |  N_i + e^x_ip    ("own_positive")  |  N_i    ("negatives")

and the loss is -mean_p l_ip (L_out; Khosla et al., arXiv 2004.11362, eq. 2) or -log mean_p e^l_ip (L_in, eq. 3).
``"negatives"`` is the decoupled loss (Yeh et al., arXiv 2110.06848, eq. 6).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .form import Form


class Pieces(NamedTuple):
    """What the losses of all rows are made of.

    Attributes:
        logits: [M, N], centred.
        weighted: [M, N], log(k_ij e^x_ij); -inf for pairs that do not count.
        positive: bool [M, N].
        num_positives: int64 [M], number of positives.
        lowest: [M], the logit of a candidate that points the other way.
        over_negatives: [M], n.
        over_positives: [M], p.
    """

    logits: Tensor
    weighted: Tensor
    positive: Tensor
    num_positives: Tensor
    lowest: Tensor
    over_negatives: Tensor
    over_positives: Tensor


def losses(row: Pieces, form: Form) -> Tensor:
    """The loss of every row, [M]."""
    n, p, valid = row.over_negatives, row.over_positives, row.num_positives > 0
    count = row.num_positives.clamp_min(1).to(n.dtype)
    if form.denominator == "all":
        loss = softplus(n - p) + (count.log() if form.positives_reduction == "inside" else p)
        if form.spread:
            loss = loss + form.spread * softplus(_log_odds(row)).sum(1)
        return torch.where(valid, loss, 0.0)
    each = _each_positive(row, form)
    if form.positives_reduction == "inside":
        loss = count.log() - (-each).masked_fill(~row.positive, -torch.inf).logsumexp(1)
    else:
        loss = torch.where(row.positive, each, 0.0).sum(1) / count
    return torch.where(valid & (n > -torch.inf) if form.denominator == "negatives" else valid, loss, 0.0)


def grad_logits(row: Pieces, form: Form) -> tuple[Tensor, Tensor]:
    """d loss_i / d s_ij [M, N], and by ``row.lowest`` [M], which is the floor of a debiased mass."""
    n, p, count = (
        row.over_negatives[:, None],
        row.over_positives[:, None],
        row.num_positives[:, None].to(row.logits.dtype),
    )
    among_positives = (row.logits - p).exp()
    if form.denominator == "all":
        mass = torch.sigmoid(n - p)
        # softmax - 1 / |P|, split so that a single positive gives exactly minus the mass of the negatives.
        outside = 0.0 if form.positives_reduction == "inside" else among_positives - 1.0 / count
        grad_positives = outside - among_positives * mass
    else:
        each = _each_positive(row, form)
        share = (
            (-each).masked_fill(~row.positive, -torch.inf).softmax(1)
            if form.positives_reduction == "inside"
            else 1.0 / count
        )
        grad_positives = -share * torch.sigmoid(n - row.logits) if form.denominator == "own_positive" else -share
        mass = -torch.where(row.positive, grad_positives, 0.0).sum(1, keepdim=True)
        if form.denominator == "negatives":
            mass = torch.where(n > -torch.inf, mass, 0.0)
            grad_positives = torch.where(n > -torch.inf, grad_positives, 0.0)
    floor = torch.zeros_like(mass)
    if form.reweighted:
        by_negative, by_positive, by_floor = _grad_mass(row, form)
        grad_negatives, floor = mass * by_negative, mass * by_floor
        grad_positives = grad_positives + mass * by_positive * among_positives
    else:
        grad_negatives = (row.weighted - n).exp() * mass
    grad = torch.where(row.positive, grad_positives, torch.where(row.weighted > -torch.inf, grad_negatives, 0.0))
    if form.spread:
        grad = grad + form.spread * _grad_spread(row)
    return torch.where(row.num_positives[:, None] > 0, grad, 0.0), torch.where(row.num_positives > 0, floor[:, 0], 0.0)


def reweigh(row: Pieces, form: Form) -> Pieces:
    """``row``, whose n is that of the plain sum, with the n of ``form``.

    Debiased (Chuang et al., arXiv 2007.00224, eq. 8), with S the sum over negatives, K their number, E the mean over
    positives and t = ``debias``: N = max((S - K t E) / (1 - t), K e^(-1 / temperature)). Hard negatives (Robinson et
    al., arXiv 2010.04592, eq. 4) have S = K sum e^((1 + beta) s) / sum e^(beta s) in place of the sum.
    """
    if not form.reweighted:
        return row
    total = _reweighted_sum(row, form)
    if not form.debias:
        return row._replace(over_negatives=total)
    _, mass, live = _debiased(row, form, total)
    return row._replace(over_negatives=torch.where(live, mass, _log_weight(row) + row.lowest))


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without the cut that ``torch.nn.functional.softplus`` makes at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _each_positive(row: Pieces, form: Form) -> Tensor:
    """-l_ip where j = p is a positive, [M, N]."""
    gap = row.over_negatives[:, None] - row.logits
    return softplus(gap) if form.denominator == "own_positive" else gap


def _log_odds(row: Pieces) -> Tensor:
    """log(p_ij / (1 - p_ij)) of the negatives, -inf elsewhere: [M, N].

    1 - p_ij is taken from the sum of the others: for the largest negative it may be lost in rounding otherwise.
    """
    if row.weighted.shape[1] == 0:
        return row.weighted
    total = torch.logaddexp(row.over_negatives, row.over_positives)[:, None]
    others = total + torch.log1p(-(row.weighted - total).exp())
    top = row.weighted.argmax(1, keepdim=True)
    without_top = row.weighted.scatter(1, top, -torch.inf).logsumexp(1)
    others = others.scatter(1, top, torch.logaddexp(without_top, row.over_positives)[:, None])
    return row.weighted - others


def _grad_spread(row: Pieces) -> Tensor:
    """The gradient p_ik (1 [k in Q_i] - sum_{j != k} p_ij / (1 - p_ij)) of -sum log(1 - p_ij) by s_ik, [M, N].

    The sum without k is taken without k: p / (1 - p) of the largest negative may exceed all others by any factor.
    """
    if row.weighted.shape[1] == 0:
        return row.weighted
    log_odds, top = _log_odds(row), row.weighted.argmax(1, keepdim=True)
    small = log_odds.scatter(1, top, -torch.inf).exp()
    logs = torch.where(row.positive, row.logits, row.weighted)
    log_share = logs - torch.logaddexp(row.over_negatives, row.over_positives)[:, None]
    rest = (~row.positive).to(small.dtype) - (small.sum(1, keepdim=True) - small)
    of_top = (log_share + log_odds.gather(1, top)).exp().scatter(1, top, 0.0)
    return log_share.exp() * rest - of_top


def _log_weight(row: Pieces) -> Tensor:
    """log K = log sum_j k_ij over the negatives, [M]."""
    return (row.weighted - row.logits).logsumexp(1)


def _log_weights(row: Pieces, beta: float) -> Tensor:
    """log(k_ij e^(beta x_ij)) of the negatives, -inf elsewhere: [M, N]."""
    return row.weighted + (beta - 1.0) * row.logits


def _reweighted_sum(row: Pieces, form: Form) -> Tensor:
    """log S, [M]; -inf without negatives."""
    beta = form.hard_negative_beta
    if not beta:
        return row.weighted.logsumexp(1)
    total = _log_weight(row) + _log_weights(row, 1.0 + beta).logsumexp(1) - _log_weights(row, beta).logsumexp(1)
    return total.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _debiased(row: Pieces, form: Form, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K t E / S, log((S - K t E) / (1 - t)) and whether that is above the floor, [M] each; ``total`` is log S."""
    mean = row.over_positives - row.num_positives.clamp_min(1).to(total.dtype).log()
    excess = (_log_weight(row) + math.log(form.debias) + mean - total).exp()
    mass = total + torch.log1p(-excess.clamp_max(1.0)) - math.log1p(-form.debias)
    return excess, mass, mass > _log_weight(row) + row.lowest


def _grad_mass(row: Pieces, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """d n_i / d x_ij of the negatives [M, N], d n_i / d p_i [M, 1] and d n_i / d floor_i [M, 1]."""
    beta = form.hard_negative_beta
    by_negative = (1.0 + beta) * _log_weights(row, 1.0 + beta).softmax(1)
    if beta:
        by_negative = by_negative - beta * _log_weights(row, beta).softmax(1)
    if not form.debias:
        nothing = torch.zeros_like(row.over_positives)[:, None]
        return by_negative, nothing, nothing
    excess, _, live = (x[:, None] for x in _debiased(row, form, _reweighted_sum(row, form)))
    slope, pull = torch.where(live, 1.0 / (1.0 - excess), 0.0), torch.where(live, excess / (1.0 - excess), 0.0)
    return by_negative * slope, -pull, (~live).to(slope.dtype)
