"""TRADES and MART against loops in float64 and numbers worked out by hand."""

import math

import pytest
import torch

from clead.losses import kl_divergence, mart_loss, trades_loss


def logits(seed, rows=5, classes=4, scale=2.0):
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


LABELS = torch.tensor([0, 3, 1, 1, 2])


def test_divergence_by_hand():
    # p = (1/2, 1/2), p_adv = (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3.
    found = kl_divergence(torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), torch.zeros(1, 2).double())
    assert math.isclose(found.item(), 0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel_tol=1e-12)


def test_trades_equals_loops():
    clean, attacked = logits(0), logits(1)
    p, q = [[softmax(row) for row in x.tolist()] for x in (clean, attacked)]
    terms = trades_loss(clean, attacked, LABELS, beta=6.0)
    ce = -sum(math.log(p[i][y]) for i, y in enumerate(LABELS.tolist())) / 5
    assert math.isclose(terms["ce"].item(), ce, rel_tol=1e-12)
    assert math.isclose(terms["kl"].item(), 6 * sum(map(kl, p, q)) / 5, rel_tol=1e-12)


def test_mart_equals_loops():
    clean, attacked = logits(2), logits(3)
    p, q = [[softmax(row) for row in x.tolist()] for x in (clean, attacked)]
    bce = divergence = 0.0
    for i, y in enumerate(LABELS.tolist()):
        bce -= math.log(q[i][y]) + math.log(1 - max(value for k, value in enumerate(q[i]) if k != y))
        divergence += (1 - p[i][y]) * kl(p[i], q[i])
    terms = mart_loss(clean, attacked, LABELS, beta=5.0)
    assert math.isclose(terms["bce"].item(), bce / 5, rel_tol=1e-12)
    assert math.isclose(terms["kl"].item(), 5 * divergence / 5, rel_tol=1e-12)


@pytest.mark.parametrize("loss", [trades_loss, mart_loss])
def test_certain_and_wrong_stays_finite(loss):
    attacked = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    terms = loss(torch.tensor([[-90.0, 90.0, 0.0]]), attacked, torch.tensor([1]))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values()) and torch.isfinite(attacked.grad).all()
