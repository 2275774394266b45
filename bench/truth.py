"""Float64 truth, written from the definitions and in blocks of rows: it shares no code with what it judges."""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import SIGMOID_BIAS, Inputs, Loss, Perturb, Similarity

BLOCK = 2**22
"""Pairs held at once."""


def loss(case: Loss, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Per-row losses [M], and the gradients of ``upstream`` times their mean, one per leaf."""
    assert inputs.upstream is not None
    leaves = [x.detach().double().requires_grad_() for x in inputs.leaves]
    units = [x / x.norm(dim=1, keepdim=True) for x in leaves]
    flat = [unit.detach().requires_grad_() for unit in units]
    directions = [(flat[0], flat[-1])] + ([(flat[-1], flat[0])] if case.op == "clip_loss" else [])
    weight = inputs.upstream.double() / case.rows / len(directions)
    rows = torch.zeros(case.rows, dtype=torch.float64, device=flat[0].device)
    step = max(1, BLOCK // flat[-1].shape[0])
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
    if case.threshold is not None:
        excluded = itself | ((cosine.detach() > case.threshold) & ~positive)
    logits = cosine / case.temperature
    if case.op == "sigmoid_loss":
        logits = logits + SIGMOID_BIAS
        return torch.logaddexp(torch.where(positive, -logits, logits), torch.zeros_like(logits)).sum(1)
    if case.op == "instance_margin":
        return logits.masked_fill(positive, -torch.inf).amax(1) - (logits * positive).sum(1)
    pulled = (logits * positive).sum(1) / positive.sum(1)
    return logits.masked_fill(excluded, -torch.inf).logsumexp(1) - pulled


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
    step = max(1, BLOCK // bank.shape[0])
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ bank.T
        best.append(scores.topk(case.k, dim=1).values)
        chosen.append(scores.gather(1, indices[start : start + step]))
    return torch.cat(best), torch.cat(chosen)


def perturb(case: Perturb, inputs: Inputs) -> Tensor:
    """The image after a step or a projection."""
    x_adv, grad, x = (v.double() for v in inputs.leaves)
    moves = case.op == "pgd_step_"
    if case.norm == "linf":
        moved = x_adv + case.step_size * grad.sign() if moves else x_adv
        return moved.clamp(x - case.eps, x + case.eps).clamp(0, 1)
    length = norms(grad)
    moved = x_adv + case.step_size * grad / length if moves else x_adv
    delta = moved - x
    return (x + delta / (norms(delta) / case.eps).clamp(min=1)).clamp(0, 1)


def norms(x: Tensor) -> Tensor:
    """l2 norm of each sample, [B, 1, …]."""
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths.reshape(-1, *[1] * (x.ndim - 1))
