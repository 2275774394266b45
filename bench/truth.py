"""Float64 truth, written from the definitions and in blocks of rows: it shares no code with what it judges."""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import SIGMOID_BIAS, THRESHOLD, Inputs, Loss, Perturb, Similarity

BLOCK = {"cpu": 2**22, "cuda": 2**28}
"""Pairs held at once; a device with little to do per launch takes many."""


def loss(case: Loss, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Per-row losses [M], and the gradients of ``upstream`` times their mean, one per leaf."""
    assert inputs.upstream is not None
    leaves = [x.detach().double().requires_grad_() for x in inputs.leaves]
    units = [x / x.norm(dim=1, keepdim=True) for x in leaves]
    flat = [unit.detach().requires_grad_() for unit in units]
    directions = [(flat[0], flat[-1])] + ([(flat[-1], flat[0])] if case.op == "clip_loss" else [])
    weight = inputs.upstream.double() / case.rows / len(directions)
    rows = torch.zeros(case.rows, dtype=torch.float64, device=flat[0].device)
    step = max(1, BLOCK[flat[-1].device.type] // flat[-1].shape[0])
    for a, b in directions:
        for start in range(0, case.rows, step):
            block = _rows(case, a, b, start, min(start + step, case.rows), inputs.labels)
            rows[start : start + len(block)] += block.detach() / len(directions)
            (weight * block.sum()).backward()
    torch.autograd.backward(units, [unit.grad for unit in flat])
    return rows, [x.grad for x in leaves if x.grad is not None]


def _rows(case: Loss, a: Tensor, b: Tensor, start: int, stop: int, labels: Tensor | None) -> Tensor:
    """Losses of rows start … stop - 1: of most logsumexp over the pairs that count, less a mean over positives."""
    row = torch.arange(start, stop, device=a.device)[:, None]
    column = torch.arange(b.shape[0], device=a.device)[None, :]
    itself = (row == column) & case.alone
    if case.op == "nt_xent":
        positive = column == (row + case.rows // 2) % case.rows
    elif case.op == "sup_con":
        assert labels is not None
        positive = (labels[row] == labels[column]) & ~itself
    else:
        positive = row == column
    cosine = a[start:stop] @ b.T
    excluded = itself
    if case.rule:
        excluded = itself | (_found(case, cosine.detach(), itself | positive, row, column, labels) & ~positive)
    logits = cosine / case.temperature
    if case.op == "sigmoid_loss":
        logits = logits + SIGMOID_BIAS
        return torch.logaddexp(torch.where(positive, -logits, logits), torch.zeros_like(logits)).sum(1)
    if case.op == "instance_margin":
        return logits.masked_fill(positive, -torch.inf).amax(1) - (logits * positive).sum(1)
    pulled = (logits * positive).sum(1) / positive.sum(1)
    return logits.masked_fill(excluded, -torch.inf).logsumexp(1) - pulled


def _found(case: Loss, cosine: Tensor, never: Tensor, row: Tensor, column: Tensor, labels: Tensor | None) -> Tensor:
    """What the rule of a case finds."""
    if case.rule == "threshold":
        return cosine > THRESHOLD
    assert labels is not None
    if case.rule == "cuts":
        return cosine > labels[row].double()
    if case.rule == "labels":
        return labels[row % len(labels)] == labels[column % len(labels)]
    negatives = cosine.masked_fill(never, -torch.inf)
    return negatives >= negatives.sort(dim=1, descending=True).values[:, case.topk - 1 : case.topk]


def similarity(case: Similarity, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """[M, N], and the gradients with ``upstream``."""
    assert inputs.upstream is not None
    leaves = [x.detach().double().requires_grad_() for x in inputs.leaves]
    a, b = (x / x.norm(dim=1, keepdim=True) for x in leaves)
    scores = a @ b.T / case.temperature
    return scores.detach(), list(torch.autograd.grad(scores, leaves, inputs.upstream.double()))


def topk(case: Similarity, inputs: Inputs, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each query, and the cosines at ``indices``."""
    queries, bank = (x.detach().double() / x.detach().double().norm(dim=1, keepdim=True) for x in inputs.leaves)
    best, chosen = [], []
    step = max(1, BLOCK[bank.device.type] // bank.shape[0])
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ bank.T
        best.append(scores.topk(case.k, dim=1).values)
        chosen.append(scores.gather(1, indices[start : start + step]))
    return torch.cat(best), torch.cat(chosen)


def perturb(case: Perturb, inputs: Inputs) -> Tensor:
    """The image after a step or a projection."""
    x_adv, grad, x = (v.double() for v in inputs.leaves)
    moved = x_adv + _move(case, x_adv, grad) if case.op == "pgd_step_" else x_adv
    if case.norm == "linf":
        return moved.clamp(x - case.eps, x + case.eps).clamp(0, 1)
    delta = moved - x
    if case.norm == "l2":
        return (x + delta / (norms(delta) / case.eps).clamp(min=1)).clamp(0, 1)
    # The nearest point of ball and box: every coordinate shrinks by one length, the least that suffices.
    room = torch.where(delta < 0, x, 1 - x)
    low, high = torch.zeros_like(norms(delta)), delta.abs().flatten(1).amax(1).reshape(norms(delta).shape)
    for _ in range(80):
        middle = (low + high) / 2
        beyond = norms(torch.minimum((delta.abs() - middle).clamp(min=0), room), 1) > case.eps
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    shrink = torch.where(norms(torch.minimum(delta.abs(), room), 1) > case.eps, high, 0.0)
    return x + delta.sign() * torch.minimum((delta.abs() - shrink).clamp(min=0), room)


def _move(case: Perturb, x_adv: Tensor, grad: Tensor) -> Tensor:
    if case.norm == "linf":
        return case.step_size * grad.sign()
    if case.norm == "l2":
        return case.step_size * grad / norms(grad)
    # Of the coordinates that the box leaves free, those with the largest gradients, and all that tie with the last.
    free = ((grad > 0) & (x_adv < 1)) | ((grad < 0) & (x_adv > 0))
    size = torch.where(free, grad.abs(), 0.0)
    least = size.flatten(1).sort(dim=1, descending=True).values[:, case.moving - 1]
    chosen = free & (size >= least.reshape(norms(grad).shape))
    return case.step_size * grad.sign() * chosen / norms(chosen.double(), 1)


def norms(x: Tensor, order: float = 2) -> Tensor:
    """Norm of each sample, [B, 1, …]."""
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), order, dim=1)
    return lengths.reshape(-1, *[1] * (x.ndim - 1))
