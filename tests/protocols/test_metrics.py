"""Metrics against loops in float64 and hand numbers."""

import math

import pytest
import torch

from clead.protocols import metrics
from clead.protocols.metrics import alignment, class_distance_ratio, gap_closed, relative_drop, uniformity


@pytest.fixture
def z():
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


def unit(z):
    return [[float(v) / math.sqrt(sum(float(u) ** 2 for u in row)) for v in row] for row in z]


@pytest.mark.parametrize("rows", [5, 1024])
def test_uniformity_and_ratio_are_what_the_loops_say(z, rows, monkeypatch):
    monkeypatch.setattr(metrics, "_ROWS", rows)
    labels = torch.arange(23) % 3
    points = unit(z)
    kernel, within, between = [], [], []
    for i in range(23):
        for j in range(23):
            if i != j:
                distance = math.dist(points[i], points[j])
                kernel.append(math.exp(-2 * distance**2))
                (within if labels[i] == labels[j] else between).append(distance)
    assert uniformity(z) == pytest.approx(math.log(sum(kernel) / len(kernel)), rel=1e-9)
    expected = (sum(between) / len(between)) / (sum(within) / len(within))
    assert class_distance_ratio(z, labels) == pytest.approx(expected, rel=1e-9)


def test_alignment_by_hand():
    z, other = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 7.0]])
    assert alignment(z, other) == pytest.approx((2 + 0) / 2)
    assert alignment(z, -z) == pytest.approx(4)


def test_a_collapsed_encoder_is_neither_uniform_nor_infinite():
    assert uniformity(torch.ones(9, 3)) == pytest.approx(0)
    assert class_distance_ratio(torch.ones(9, 3), torch.arange(9) % 3) == pytest.approx(1)


def test_drops_and_gaps_of_adaptive_fnc():
    # Table 4 at FGSM 8/255: SimCLR 92.7 -> 26.8, SupCon 95.5 -> 38.8, adaptive FNC 93.5 -> 33.6: "58 %".
    simclr, supcon, ours = relative_drop(0.927, 0.268), relative_drop(0.955, 0.388), relative_drop(0.935, 0.336)
    assert simclr == pytest.approx(0.659 / 0.927)
    assert gap_closed(round(ours, 2), baseline=round(simclr, 2), reference=round(supcon, 2)) == pytest.approx(7 / 12)
    assert gap_closed(simclr, baseline=simclr, reference=supcon) == 0
    assert relative_drop(0.0, 0.0) == 0
