"""What a careful engineer writes with PyTorch's operators: in place, positives from the rows, no mask of pairs.

``f(*leaves, case=, labels=, reduction=)`` for a loss, ``f(a, b, case=)`` for a similarity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import images, rules
from .cases import SIGMOID_BIAS, Loss, Similarity


def nt_xent(x: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """Temperature folded into the rows, the diagonal filled in place, positives from the rows, one logsumexp."""
    x = F.normalize(x, dim=1) * case.temperature**-0.5
    scores = x @ x.t()
    half = x.shape[0] // 2
    if case.rule:
        cancelled = rules.cancelled(scores.detach(), case, labels, 1 / case.temperature)
        cancelled.diagonal(half).fill_(False)
        cancelled.diagonal(-half).fill_(False)
        cancelled.fill_diagonal_(True)
        scores = scores.masked_fill_(cancelled, -torch.inf)
    else:
        scores = scores.fill_diagonal_(-torch.inf)
    rows = scores.logsumexp(1) - (x * x.roll(half, 0)).sum(1)
    return rows.mean() if reduction == "mean" else rows


def sup_con(x: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """Positives from sums over classes: no mask of pairs."""
    assert labels is not None
    x = F.normalize(x, dim=1) * case.temperature**-0.5
    sums = x.new_zeros(case.classes, x.shape[1]).index_add(0, labels, x)
    count = torch.bincount(labels, minlength=case.classes)[labels] - 1
    positives = ((sums[labels] - x) * x).sum(1) / count
    rows = (x @ x.t()).fill_diagonal_(-torch.inf).logsumexp(1) - positives
    return rows.mean() if reduction == "mean" else rows


def info_nce(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    a, b = F.normalize(a, dim=1) / case.temperature, F.normalize(b, dim=1)
    rows = (a @ b.t()).logsumexp(1) - (a * b[: a.shape[0]]).sum(1)
    return rows.mean() if reduction == "mean" else rows


def clip_loss(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    a, b = F.normalize(a, dim=1) / case.temperature, F.normalize(b, dim=1)
    scores = a @ b.t()
    rows = (scores.logsumexp(1) + scores.logsumexp(0)) / 2 - (a * b).sum(1)
    return rows.mean() if reduction == "mean" else rows


def sigmoid_loss(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """-log sigmoid(-s) of all pairs, and -log sigmoid(s) = -log sigmoid(-s) - s on the diagonal: no matrix of signs."""
    a, b = F.normalize(a, dim=1) / case.temperature, F.normalize(b, dim=1)
    rows = F.softplus(a @ b.t() + SIGMOID_BIAS).sum(1) - (a * b).sum(1) - SIGMOID_BIAS
    return rows.mean() if reduction == "mean" else rows


def instance_margin(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    a, b = F.normalize(a, dim=1) / case.temperature, F.normalize(b, dim=1)
    rows = (a @ b.t()).fill_diagonal_(-torch.inf).amax(1) - (a * b).sum(1)
    return rows.mean() if reduction == "mean" else rows


def similarity(a: Tensor, b: Tensor, *, case: Similarity) -> Tensor:
    """The temperature divides the rows, not the matrix."""
    return (F.normalize(a, dim=1) / case.temperature) @ F.normalize(b, dim=1).t()


def similarity_topk(queries: Tensor, bank: Tensor, *, case: Similarity) -> tuple[Tensor, Tensor]:
    """In blocks of queries, so that the whole matrix is never held."""
    bank = F.normalize(bank, dim=1).t()
    blocks = F.normalize(queries, dim=1).split(max(1, TOPK_BLOCK // bank.shape[1]))
    best = [(block @ bank).topk(case.k, dim=1) for block in blocks]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])


TOPK_BLOCK = 2**24
"""Pairs that ``similarity_topk`` holds at once."""

CAREFUL: dict[str, Callable[..., Any]] = {
    "nt_xent": nt_xent,
    "sup_con": sup_con,
    "info_nce": info_nce,
    "clip_loss": clip_loss,
    "sigmoid_loss": sigmoid_loss,
    "instance_margin": instance_margin,
    "similarity": similarity,
    "similarity_topk": similarity_topk,
    **images.CAREFUL,
}
