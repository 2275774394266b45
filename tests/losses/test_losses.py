"""Each loss against loops in float64 and numbers worked out by hand."""

import math

import torch

from clead.losses import clead_loss, margin


def test_margin_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert margin(logits, torch.tensor([0, 2])).tolist() == [-1.0, 1.0]


def cosine(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.dist(a, [0] * len(a)) / math.dist(b, [0] * len(b))


def test_clead_loss_by_hand():
    # Two orthogonal images. Under PGD each stays itself: s = 1/tau on the diagonal, 0 beside it. Under CW they swap.
    x = torch.eye(2, dtype=torch.float64)
    terms = clead_loss(x, {"pgd": x, "cw": x.flip(0)}, temperature=0.5)
    assert math.isclose(terms["pgd"].item(), 0.5 * math.log(1 + math.exp(-2)), rel_tol=1e-12)
    assert math.isclose(terms["cw"].item(), 0.5 * math.log(1 + math.exp(2)), rel_tol=1e-12)


def test_clead_loss_equals_loops():
    generator = torch.Generator().manual_seed(2)
    x, pgd, cw = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    tau = 0.1
    expected = 0.0
    for z in (pgd, cw):
        for i in range(5):
            s = [cosine(x[i].tolist(), z[j].tolist()) / tau for j in range(5)]
            expected += -(s[i] - math.log(sum(math.exp(v) for v in s))) / 5 / 2
    loss = sum(clead_loss(x, {"pgd": pgd, "cw": cw}, temperature=tau).values())
    assert math.isclose(loss.item(), expected, rel_tol=1e-10)
