"""What the papers' codes do, and the lines that bound every form.

A rival of a loss is ``f(*leaves, case=, labels=, reduction=)``; ``Unavailable`` says in one sentence why one cannot run
a case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import images, rules
from .cases import SIGMOID_BIAS, Case, Inputs, Loss, Perturb, Similarity


class Unavailable(Exception):
    """Why a contender cannot run a case."""


def eager_nt_xent(x: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """``nt_xent`` of the Adversarial-Contrastive-Learning repository: a mask of large negatives, then cross-entropy.

    Views come as halves, not alternating; its clamp of negative cosines to 0, which changes the loss, is left out.
    SimCLR's form, which selects the negatives with a boolean mask, takes about twice as long on a CPU.
    """
    rows = x.shape[0]
    x = F.normalize(x, dim=1)
    scores = x @ x.t()
    partner = torch.arange(rows, device=x.device).roll(rows // 2)
    if case.rule:
        # The adaptive false-negative rule: what it finds leaves the denominator, true positives stay.
        cancelled = rules.cancelled(scores.detach(), case, labels)
        cancelled[torch.arange(rows, device=x.device), partner] = False
        scores = scores.masked_fill(cancelled, -1e5)
    scores = scores / case.temperature
    scores = scores - torch.eye(rows, device=x.device, dtype=x.dtype) * 1e5
    return F.cross_entropy(scores, partner, reduction=reduction)


def eager_sup_con(x: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """``SupConLoss`` of the SupContrast repository, one view a row; base temperature = temperature."""
    assert labels is not None
    x = F.normalize(x, dim=1)
    logits = torch.div(torch.matmul(x, x.T), case.temperature)
    logits = logits - torch.max(logits, dim=1, keepdim=True).values.detach()
    mask = torch.eq(labels[:, None], labels[None, :]).to(x.dtype)
    index = torch.arange(x.shape[0], device=x.device).view(-1, 1)
    logits_mask = torch.scatter(torch.ones_like(mask), 1, index, 0)
    mask = mask * logits_mask
    log_prob = logits - torch.log((torch.exp(logits) * logits_mask).sum(1, keepdim=True))
    rows = -(mask * log_prob).sum(1) / mask.sum(1)
    return rows.mean() if reduction == "mean" else rows


def eager_info_nce(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / case.temperature
    return F.cross_entropy(logits, torch.arange(a.shape[0], device=a.device), reduction=reduction)


def eager_clip(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """CLIP's figure 3."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / case.temperature
    target = torch.arange(a.shape[0], device=a.device)
    return (
        F.cross_entropy(logits, target, reduction=reduction) + F.cross_entropy(logits.t(), target, reduction=reduction)
    ) / 2


def eager_sigmoid_loss(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """SigLIP's algorithm 1, with the bias that ``sigmoid_loss`` has by default."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / case.temperature + SIGMOID_BIAS
    signs = 2 * torch.eye(*logits.shape, device=a.device, dtype=a.dtype) - 1
    rows = -F.logsigmoid(signs * logits).sum(1)
    return rows.mean() if reduction == "mean" else rows


def eager_instance_margin(a: Tensor, b: Tensor, *, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """The margin of Carlini and Wagner as attack toolboxes write it: the largest of the others by a mask."""
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / case.temperature
    own = torch.eye(*scores.shape, device=a.device, dtype=torch.bool)
    rows = scores.masked_fill(own, -torch.inf).amax(1) - scores.diagonal()
    return rows.mean() if reduction == "mean" else rows


def eager_similarity(a: Tensor, b: Tensor, *, case: Similarity) -> Tensor:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / case.temperature


def eager_topk(queries: Tensor, bank: Tensor, *, case: Similarity) -> tuple[Tensor, Tensor]:
    best = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).t()).topk(case.k, dim=1)
    return best.values, best.indices


def products(case: Loss | Similarity, inputs: Inputs) -> list[Callable[[], object]]:
    """Eager's matrix products alone: S = A Bᵀ, then G B and Gᵀ A, into buffers that are there already."""
    a, b = inputs.leaves[0].detach(), inputs.leaves[-1].detach()
    scores = a.new_empty(a.shape[0], b.shape[0])
    forward = partial(torch.mm, a, b.t(), out=scores)
    if len(case.modes) == 1:
        return [forward]
    grad, grad_a, grad_b = torch.randn_like(scores), torch.empty_like(a), torch.empty_like(b)

    def backward() -> None:
        torch.mm(grad, b, out=grad_a)
        torch.mm(grad.t(), a, out=grad_b)

    return [forward, backward]


def nothing(case: Case, inputs: Inputs) -> list[Callable[[], object]]:
    """An ``autograd.Function`` that does nothing, forward and backward: what any operator costs its caller."""
    assert inputs.upstream is not None
    loss, upstream = torch.zeros_like(inputs.upstream), inputs.upstream
    grads = tuple(torch.zeros_like(x) for x in inputs.leaves)

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *leaves: Tensor) -> Tensor:
            return loss.view(())

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            return grads

    results: list[Tensor] = []

    def forward() -> None:
        results[:] = [Nothing.apply(*inputs.leaves)]

    def backward() -> None:
        torch.autograd.grad(results[0], inputs.leaves, upstream)

    return [forward, backward]


def traffic(case: Perturb, inputs: Inputs) -> list[Callable[[], object]]:
    """One elementwise operator that reads and writes as many images as the op must."""
    x_adv, grad, x = inputs.leaves
    out = torch.empty_like(x)
    if case.reads == 3:
        return [partial(torch.addcmul, x_adv, grad, x, out=out)]
    return [partial(torch.add, x_adv, x, out=out) if case.reads == 2 else partial(out.copy_, x)]


EAGER: dict[str, Callable[..., Any]] = {
    "nt_xent": eager_nt_xent,
    "sup_con": eager_sup_con,
    "info_nce": eager_info_nce,
    "clip_loss": eager_clip,
    "sigmoid_loss": eager_sigmoid_loss,
    "instance_margin": eager_instance_margin,
    "similarity": eager_similarity,
    "similarity_topk": eager_topk,
    **images.EAGER,
}


def bound(function: Callable[..., Any], case: Case, inputs: Inputs) -> Callable[..., Any]:
    """``function`` with all but its tensors filled in."""
    if isinstance(case, Loss):
        return partial(function, case=case, labels=inputs.labels)
    return partial(function, case=case)
