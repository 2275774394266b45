"""TRADES and MART against loops over Python numbers."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from clead.losses import kl_divergence, mart_loss, trades_loss

LABELS = torch.tensor([0, 2, 1, 2])


def two_sets_of_logits():
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2))


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def probabilities(logits):
    return [softmax(row) for row in logits.tolist()]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_kl_divergence_by_hand():
    # p = (3/4, 1/4), p' = (1/2, 1/2): KL(p || p') = log 2 - H(p); the other way round it is another number.
    p, q = (torch.tensor([v], dtype=torch.float64).log() for v in ([0.75, 0.25], [0.5, 0.5]))
    assert kl_divergence(p, q).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-12)
    assert kl_divergence(q, p).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-12)
    assert kl_divergence(p, p).item() == 0.0


def test_trades_equals_loops():
    clean, adversarial = two_sets_of_logits()
    terms = trades_loss(clean, adversarial, LABELS, beta=6.0)
    rows = list(zip(probabilities(clean), probabilities(adversarial), LABELS.tolist(), strict=True))
    assert terms["ce"].item() == pytest.approx(sum(-math.log(p[y]) for p, _, y in rows) / 4, rel=1e-12)
    assert terms["kl"].item() == pytest.approx(6 * sum(divergence(p, q) for p, q, _ in rows) / 4, rel=1e-12)


def test_mart_equals_loops():
    clean, adversarial = two_sets_of_logits()
    terms = mart_loss(clean, adversarial, LABELS, beta=5.0)
    bce = kl = 0.0
    for p, q, y in zip(probabilities(clean), probabilities(adversarial), LABELS.tolist(), strict=True):
        runner_up = max(q[k] for k in range(3) if k != y)
        bce += (-math.log(q[y]) - math.log(1.0001 - runner_up)) / 4
        kl += 5 * divergence(p, q) * (1 - p[y]) / 4
    assert terms["bce"].item() == pytest.approx(bce, rel=1e-12)
    assert terms["kl"].item() == pytest.approx(kl, rel=1e-12)


@pytest.mark.parametrize("loss", [trades_loss, mart_loss])
def test_gradients_flow_through_both_sets_of_logits(loss):
    inputs = [logits.requires_grad_() for logits in two_sets_of_logits()]
    assert gradcheck(lambda a, b: sum(loss(a, b, LABELS, beta=2.0).values()), inputs)


@pytest.mark.parametrize("loss", [trades_loss, mart_loss])
def test_certain_answers_keep_the_loss_and_its_gradient_finite(loss):
    clean = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    adversarial = clean.flip(1).requires_grad_()
    total = sum(loss(clean, adversarial, torch.tensor([0, 0]), beta=1.0).values())
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(adversarial.grad).all()
