"""Which negatives are cancelled, against loops over pairs and hand counts."""

from __future__ import annotations

import math

import pytest
import torch

from clead_kernels import FalseNegatives, cancelled, info_nce
from clead_kernels.contrastive import cancellation

pytestmark = pytest.mark.kernels


def angles(*degrees):
    return torch.tensor([[math.cos(math.radians(x)), math.sin(math.radians(x))] for x in degrees])


# Two views of three images; view 2 is 3 degrees on. Row 0 meets row 1 at 20 degrees, row 4 at 23.
Z = angles(0, 20, 90, 3, 23, 93)
NEAR = {"threshold": math.cos(math.radians(22))}


def test_hand_counts():
    # Below 22 degrees: 0-1 (20), 3-1 (17), 3-4 (20); 0-4 is at 23.
    found = cancelled(Z, FalseNegatives(**NEAR), labels=torch.tensor([5, 5, 8]))
    assert found.counts.tolist() == [1, 2, 0, 2, 1, 0]
    assert found.precision.item() == 1
    assert found.recall.item() == pytest.approx(6 / 8)  # 0-1, 0-4, 3-1, 3-4, both ways
    found = cancelled(Z, FalseNegatives(**NEAR), labels=torch.tensor([5, 8, 8]))
    assert (found.precision.item(), found.recall.item()) == (0, 0)
    assert cancelled(Z, FalseNegatives(topk=2)).counts.tolist() == [2] * 6
    assert cancelled(Z, FalseNegatives(threshold=-1.0), num_views=3).counts.tolist() == [3] * 6
    assert cancelled(Z[:0], FalseNegatives(**NEAR)).counts.tolist() == []


def test_nothing_to_count_is_nan():
    found = cancelled(Z, FalseNegatives(threshold=math.inf), labels=torch.arange(3))
    assert found.precision.isnan()
    assert found.recall.isnan()
    assert cancelled(Z, FalseNegatives(**NEAR)).precision.isnan()


RULES = [
    {"threshold": 0.2},
    {"threshold": torch.linspace(-0.5, 0.5, 12)},
    {"topk": 3, "treatment": "attract"},
    {"threshold": 0.0, "topk": 4, "combine": "and", "treatment": "weight", "weight": 0.5},
    {"labels": torch.arange(12) % 5},
    {"labels": torch.stack([torch.arange(12) % 5, torch.arange(12) % 2]), "levels": "any"},
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunk", [1 << 22, 40, 1])
@pytest.mark.parametrize("two_sets", [False, True])
def test_against_a_loop(randn, monkeypatch, rule, chunk, two_sets):
    monkeypatch.setattr(cancellation, "_CHUNK", chunk)
    a, b = randn(12, 3, seed=1), randn(12, 3, seed=2)
    classes, others = torch.arange(12) % 3, torch.arange(12) // 4
    if not two_sets:
        b, others = a, classes
    u, v = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    counts, hits, total, possible = [], 0, 0, 0
    for i in range(12):
        excluded = {i} if two_sets else {i, (i + 6) % 12}
        negatives = [j for j in range(12) if j not in excluded]
        sets = []
        if "threshold" in rule:
            cut = rule["threshold"][i].item() if isinstance(rule["threshold"], torch.Tensor) else rule["threshold"]
            sets.append({j for j in negatives if (u[i] @ v[j]).item() > cut})
        if "topk" in rule:
            sets.append(set(sorted(negatives, key=lambda j: -(u[i] @ v[j]).item())[: rule["topk"]]))  # noqa: B023
        if "labels" in rule:
            levels = rule["labels"].reshape(-1, 12)
            sets.append({j for j in negatives if (levels[:, i] == levels[:, j]).any()})
        found = set.intersection(*sets) if rule.get("combine") == "and" else set.union(*sets)
        counts.append(len(found))
        hits += sum(classes[i].item() == others[j].item() for j in found)
        possible += sum(classes[i].item() == others[j].item() for j in negatives)
        total += len(found)
    given = {"candidates": b, "candidate_labels": others} if two_sets else {}
    ours = cancelled(a, FalseNegatives(**rule), labels=classes, **given)
    assert ours.counts.tolist() == counts
    assert ours.precision.item() == pytest.approx(hits / total)
    assert ours.recall.item() == pytest.approx(hits / possible)


def test_the_loss_leaves_out_what_is_counted(randn):
    """In float32 too: a row's loss at an enormous temperature is the logarithm of its number of candidates."""
    a, b = randn(40, 16, dtype=torch.float32, seed=1, grad=True), randn(50, 16, dtype=torch.float32, seed=2)
    rule = FalseNegatives(threshold=0.1)
    found = cancelled(a, rule, candidates=b)
    rows = info_nce(a, b, temperature=1e6, false_negatives=rule, reduction="none")
    assert (50 - rows.exp().round()).int().tolist() == found.counts.tolist()
    assert not found.precision.requires_grad


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: cancelled(Z, 0.9), TypeError, "false_negatives must be a FalseNegatives, got float"),
        (lambda: cancelled(Z[:5], FalseNegatives(topk=1)), ValueError, "num_views = 2 rows per image, got 5 rows"),
        (lambda: cancelled(Z, FalseNegatives(topk=1), candidate_labels=Z), ValueError, "labels and candidate_labels"),
        (
            lambda: cancelled(Z, FalseNegatives(topk=1), candidates=Z, labels=torch.arange(6)),
            ValueError,
            "labels and candidate_labels must be given for embeddings and candidates alike",
        ),
        (
            lambda: cancelled(Z, FalseNegatives(topk=1), labels=torch.arange(4)),
            ValueError,
            r"labels must have shape \[6\] or \[3\], got \[4\]",
        ),
    ],
)
def test_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
