"""The numerical bar of contracts.md section 8 for the forms of the contrastive losses, against eager PyTorch."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import sup_con

pytestmark = pytest.mark.kernels
ROWS, WIDTH, NEVER = 96, 32, float("-inf")
FORMS = {
    "inside": {"positives_reduction": "inside"},
    "own": {"denominator": "own_positive"},
    "own, inside": {"denominator": "own_positive", "positives_reduction": "inside"},
    "decoupled": {"denominator": "negatives"},
    "decoupled, inside": {"denominator": "negatives", "positives_reduction": "inside"},
    "spread": {"spread": 0.5},
    "debiased": {"debias": 0.01},
    "debiased to the floor": {"debias": 0.1},
    "hard": {"hard_negative_beta": 0.5},
    "euclidean": {"metric": "euclidean"},
}


def eager(z, positive, temperature, positives_reduction="mean", denominator="all", spread=0.0, debias=0.0,
          hard_negative_beta=0.0, metric="cosine"):  # fmt: skip
    """What one writes without this package: row losses from logits [M, M]."""
    z = F.normalize(z)
    eye, count = torch.eye(len(z), dtype=torch.bool), positive.sum(1)
    s = (z @ z.T if metric == "cosine" else 2 * z @ z.T - 2) / temperature
    negative = s.masked_fill(positive | eye, NEVER)
    total = negative.logsumexp(1, keepdim=True)
    if hard_negative_beta:
        weights = (hard_negative_beta * negative).softmax(1) * (~(positive | eye)).sum(1, keepdim=True)
        total = (weights * negative.exp()).sum(1, keepdim=True).log()
    if debias:
        number = (~(positive | eye)).sum(1, keepdim=True)
        mean = (s.exp() * positive).sum(1, keepdim=True) / count[:, None]
        debiased = (total.exp() - number * debias * mean) / (1 - debias)
        total = torch.maximum(debiased, number * (-1 / temperature).exp()).log()
    everything = torch.logaddexp(total, s.masked_fill(~positive, NEVER).logsumexp(1, keepdim=True))
    log_probability = (
        s - {"all": everything, "own_positive": torch.logaddexp(total, s), "negatives": total}[denominator]
    )
    if positives_reduction == "inside":
        loss = count.log() - log_probability.masked_fill(~positive, NEVER).logsumexp(1)
    else:
        loss = -(log_probability * positive).sum(1) / count
    if spread:
        loss = loss - spread * (1 - (s - everything).exp()).masked_fill(positive | eye, 1.0).log().sum(1)
    return loss


def measure(loss, z, temperature):
    z = z.clone().requires_grad_()
    scale = torch.tensor(temperature, dtype=torch.float64 if z.dtype == torch.float64 else torch.float32)
    rows = loss(z, scale.requires_grad_())
    grads = torch.autograd.grad(rows, (z, scale), torch.full_like(rows, 1 / ROWS))
    return [x.detach().double() for x in (rows, *grads)]


@pytest.mark.parametrize(("form", "dtype"), list(product(FORMS, [torch.float32, torch.bfloat16])))
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_numerical_bar(randn, form, dtype, impl):
    labels, temperature = torch.arange(ROWS) % 12, 0.1
    positive = (labels[:, None] == labels) & ~torch.eye(ROWS, dtype=torch.bool)
    ours, rivals, truths = [], [], []
    for seed in range(5):
        centres = randn(12, WIDTH, seed=seed).repeat(ROWS // 12, 1)
        z = (centres + randn(ROWS, WIDTH, seed=seed + 50)).to(dtype)
        rival, truth = (
            measure(lambda z, t: eager(z, positive, t, **FORMS[form]), x, temperature) for x in (z, z.double())
        )
        mine = measure(
            lambda z, t: sup_con(z, labels, temperature=t, reduction="none", impl=impl, **FORMS[form]), z, temperature
        )
        truths.append(truth)
        ours.append([x - y for x, y in zip(mine, truth, strict=True)])
        rivals.append([x - y for x, y in zip(rival, truth, strict=True)])
    for index in range(3):
        unit = torch.finfo(dtype if index == 1 else torch.float32).eps / 2
        truth, mine, rival = (torch.cat([run[index].flatten() for run in runs]) for runs in (truths, ours, rivals))
        assert mine.norm() <= max(1.5 * rival.norm(), 8 * unit * truth.norm()), index
        assert mine.abs().max() <= max(2 * rival.abs().max(), 16 * unit * truth.abs().max()), index
