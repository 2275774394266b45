"""The contrastive family against loops over pairs, written from the papers' definitions."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con

pytestmark = pytest.mark.kernels


def dot(x, y):
    return sum(p * q for p, q in zip(x, y, strict=True))


def cosine(x, y):
    return dot(x, y) / (max(math.hypot(*x), 1e-12) * max(math.hypot(*y), 1e-12))


def false_negatives_of(row, negatives, cosines, rule):
    """The columns among ``negatives`` that ``rule`` calls false ones."""
    found = []
    if rule.threshold is not None:
        threshold = rule.threshold
        if isinstance(threshold, torch.Tensor):
            threshold = threshold[row].item() if threshold.ndim else threshold.item()
        found.append({j for j in negatives if cosines[j] > threshold})
    if rule.topk is not None:
        found.append(set(sorted(negatives, key=lambda j: -cosines[j])[: rule.topk]))
    if rule.labels is not None:
        of_rows, of_columns = rule.labels if isinstance(rule.labels, tuple) else (rule.labels, rule.labels)
        label = of_rows[row].item()
        found.append({j for j in negatives if label >= 0 and of_columns[j].item() == label})
    return set.union(*found) if rule.combine == "or" else set.intersection(*found)


def loop(anchors, candidates, positives_of, excluded_of, *, temperature, normalize=True, rule=None):
    """Per-row losses and, per row, whether it has a positive; float64 lists."""
    anchors, candidates = anchors.tolist(), candidates.tolist()
    losses, valid = [], []
    for i, anchor in enumerate(anchors):
        columns = set(range(len(candidates))) - excluded_of(i)
        positives = positives_of(i) & columns
        negatives = columns - positives
        cosines = [cosine(anchor, candidate) for candidate in candidates]
        scores = [(c if normalize else dot(anchor, x)) / temperature for c, x in zip(cosines, candidates, strict=True)]
        weights = dict.fromkeys(columns, 1.0)
        for j in false_negatives_of(i, negatives, cosines, rule) if rule else ():
            if rule.treatment == "attract":
                positives = positives | {j}
            else:
                weights[j] = rule.weight if rule.treatment == "weight" else 0.0
        valid.append(bool(positives))
        if not positives:
            losses.append(0.0)
            continue
        denominator = math.log(sum(weights[j] * math.exp(scores[j]) for j in columns))
        losses.append(sum(denominator - scores[p] for p in positives) / len(positives))
    return losses, valid


# Each door as (inputs -> loss) and as the sets its definition speaks of. M = 6 rows.
LABELS = torch.tensor([4, 4, 7, 4, 7, -2])
CANDIDATE_LABELS = torch.tensor([7, 4, 4, 9, 9, 4, 7, 7])
POSITIVES = torch.tensor([3, -1, 0, 7, 3, 5])


def same(labels, other, row):
    return {j for j in range(len(other)) if other[j] == labels[row]}


DOORS = {
    "info_nce": (
        lambda a, b, **k: info_nce(a, b[:6], **k),
        lambda a, b, **k: loop(a, b[:6], lambda i: {i}, lambda i: set(), **k),
        6,
    ),
    "info_nce with a queue": (
        lambda a, b, **k: info_nce(a, b, **k),
        lambda a, b, **k: loop(a, b, lambda i: {i}, lambda i: set(), **k),
        8,
    ),
    "info_nce by index": (
        lambda a, b, **k: info_nce(a, b, positives=POSITIVES, **k),
        lambda a, b, **k: loop(a, b, lambda i: {POSITIVES[i].item()}, lambda i: set(), **k),
        8,
    ),
    "nt_xent, 2 views": (
        lambda a, b, **k: nt_xent(a, **k),
        lambda a, b, **k: loop(a, a, lambda i: {(i + 3) % 6}, lambda i: {i}, **k),
        6,
    ),
    "nt_xent, 3 views": (
        lambda a, b, **k: nt_xent(a, num_views=3, **k),
        lambda a, b, **k: loop(a, a, lambda i: {(i + 2) % 6, (i + 4) % 6}, lambda i: {i}, **k),
        6,
    ),
    "sup_con": (
        lambda a, b, **k: sup_con(a, LABELS, **k),
        lambda a, b, **k: loop(a, a, lambda i: same(LABELS, LABELS, i), lambda i: {i}, **k),
        6,
    ),
    "sup_con across sets": (
        lambda a, b, **k: sup_con(a, LABELS, candidates=b, candidate_labels=CANDIDATE_LABELS, **k),
        lambda a, b, **k: loop(a, b, lambda i: same(LABELS, CANDIDATE_LABELS, i), lambda i: set(), **k),
        8,
    ),
}

CLUSTERS = torch.tensor([0, 1, 0, -1, 1, 0])
CANDIDATE_CLUSTERS = torch.tensor([1, 0, 0, -1, 1, 1, 0, 5])
RULES = {
    "threshold": {"threshold": 0.2},
    "threshold, tensor": {"threshold": torch.tensor(0.2)},
    "threshold per row": {"threshold": torch.tensor([0.5, -0.4, math.inf, 0.0, -1.0, 0.3], dtype=torch.float64)},
    "topk": {"topk": 2},
    "topk, more than there are": {"topk": 100},
    "labels": {"labels": True},
    "all, or": {"threshold": 0.6, "topk": 1, "labels": True, "combine": "or"},
    "all, and": {"threshold": -0.5, "topk": 4, "labels": True, "combine": "and"},
}
TREATMENTS = {"eliminate": {}, "attract": {}, "weight": {"weight": 0.3}}


def make_rule(name, treatment, columns):
    rule = dict(RULES[name], treatment=treatment, **TREATMENTS[treatment])
    if "labels" in rule:
        rule["labels"] = CLUSTERS if columns == 6 else (CLUSTERS, CANDIDATE_CLUSTERS)
    return FalseNegatives(**rule)


def check_door(door, a, b, **options):
    ours, truth, _ = DOORS[door]
    losses, valid = truth(a, b, **options)
    if "rule" in options:
        options["false_negatives"] = options.pop("rule")
    rows = ours(a, b, reduction="none", **options)
    expected = torch.tensor(losses, dtype=torch.float64)
    torch.testing.assert_close(rows, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours(a, b, reduction="sum", **options), expected.sum())
    torch.testing.assert_close(ours(a, b, **options), expected.sum() / len(losses))
    if door.startswith("sup_con"):
        mean = expected.sum() / max(sum(valid), 1)
        torch.testing.assert_close(ours(a, b, reduction="mean_valid", **options), mean)


@pytest.mark.parametrize(("door", "normalize"), list(product(DOORS, [True, False])))
def test_doors(randn, door, normalize):
    check_door(door, randn(6, 3, seed=1), randn(8, 3, seed=2), temperature=0.3, normalize=normalize)


@pytest.mark.parametrize(("door", "rule", "treatment"), list(product(DOORS, RULES, TREATMENTS)))
def test_false_negatives(randn, door, rule, treatment):
    rule = make_rule(rule, treatment, DOORS[door][2])
    for normalize in (True, False):
        a, b = randn(6, 3, seed=3), randn(8, 3, seed=4)
        check_door(door, a, b, temperature=0.4, normalize=normalize, rule=rule)


@pytest.mark.parametrize("door", DOORS)
def test_rules_find_something(randn, door):
    """The sweep above would prove little if a rule met no pair: each of these changes the loss."""
    a, b = randn(6, 3, seed=3), randn(8, 3, seed=4)
    plain = DOORS[door][0](a, b)
    for name, treatment in product(RULES, TREATMENTS):
        rule = make_rule(name, treatment, DOORS[door][2])
        assert DOORS[door][0](a, b, false_negatives=rule) != plain, (name, treatment)


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (1, 7, 2), (2, 2, 7), (7, 7, 1), (2, 7, 33)])
def test_shapes(randn, m, n, d):
    a, b = randn(m, d, seed=1), randn(n, d, seed=2)
    losses, _ = loop(a, b, lambda i: {i}, lambda i: set(), temperature=0.1)
    torch.testing.assert_close(info_nce(a, b, reduction="none"), torch.tensor(losses, dtype=torch.float64))
    losses, _ = loop(a, a, lambda i: {(i + m // 2) % m}, lambda i: {i}, temperature=0.5)
    if m % 2 == 0:
        torch.testing.assert_close(nt_xent(a, reduction="none"), torch.tensor(losses, dtype=torch.float64))


@pytest.mark.parametrize("views", [2, 3, 4])
def test_views_are_averaged_over_positives(randn, views):
    z = randn(3 * views, 5)
    losses, _ = loop(z, z, lambda i: {j for j in range(3 * views) if j % 3 == i % 3}, lambda i: {i}, temperature=0.2)
    rows = nt_xent(z, num_views=views, temperature=0.2, reduction="none")
    torch.testing.assert_close(rows, torch.tensor(losses, dtype=torch.float64))


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("normalize", [True, False])
def test_clip_loss_is_the_mean_of_both_directions(randn, rule, normalize):
    a, b = randn(6, 3, seed=1), randn(6, 3, seed=2)
    there = back = None
    if rule:
        there = make_rule(rule, "weight", 6)
        back = there
        if there.labels is not None:
            there, back = (
                FalseNegatives(**{**RULES[rule], "labels": labels}, treatment="weight", weight=0.3)
                for labels in ((CLUSTERS, CANDIDATE_CLUSTERS[:6]), (CANDIDATE_CLUSTERS[:6], CLUSTERS))
            )
    losses = [
        loop(x, y, lambda i: {i}, lambda i: set(), temperature=0.07, normalize=normalize, rule=r)[0]
        for x, y, r in ((a, b, there), (b, a, back))
    ]
    expected = torch.tensor(losses, dtype=torch.float64).mean(0)
    rows = clip_loss(a, b, normalize=normalize, false_negatives=there, reduction="none")
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(clip_loss(a, b, normalize=normalize, false_negatives=there), expected.mean())


def test_hand_numbers():
    eye = torch.eye(4, dtype=torch.float64)
    # Orthogonal rows: every logit is 0 except the diagonal's 1/t.
    assert nt_xent(eye).item() == pytest.approx(math.log(3))
    assert info_nce(eye, eye, temperature=0.5).item() == pytest.approx(math.log(math.exp(2) + 3) - 2)
    assert clip_loss(eye, eye, temperature=0.5).item() == pytest.approx(math.log(math.exp(2) + 3) - 2)
    # Labels 0 0 0 1: three rows with two positives among three others, one row without.
    labels = torch.tensor([0, 0, 0, 1])
    assert sup_con(eye, labels).item() == pytest.approx(math.log(3) * 3 / 4)
    assert sup_con(eye, labels, reduction="mean_valid").item() == pytest.approx(math.log(3))
    assert sup_con(eye, labels, reduction="none")[3].item() == 0
    # Rows 0 and 2 of class 0 point the same way, row 1 of class 1 away: log(e^2 + e^0) - 2 with t = 1/2.
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    assert sup_con(z, torch.tensor([0, 1, 0]), temperature=0.5, reduction="none").tolist() == pytest.approx(
        [math.log(math.exp(2) + 1) - 2, 0, math.log(math.exp(2) + 1) - 2]
    )
    # Eliminating the only negative leaves log 1; attracting it gives log 2; weighing it by 1/2 log(1 + e^0 / 2).
    pair = torch.ones(1, 2), torch.ones(2, 2)
    rule = {"threshold": 0.9}
    assert info_nce(*pair).item() == pytest.approx(math.log(2))
    assert info_nce(*pair, false_negatives=FalseNegatives(**rule)).item() == 0
    assert info_nce(*pair, false_negatives=FalseNegatives(**rule, treatment="attract")).item() == pytest.approx(
        math.log(2)
    )
    half = FalseNegatives(**rule, treatment="weight", weight=0.5)
    assert info_nce(*pair, false_negatives=half).item() == pytest.approx(math.log(1.5))


def test_agrees_with_cross_entropy_in_value_and_gradient(randn):
    a, b, temperature = randn(5, 4, seed=1), randn(9, 4, seed=2), torch.tensor(0.2, dtype=torch.float64)
    ours = [x.clone().requires_grad_() for x in (a, b, temperature)]
    theirs = [x.clone().requires_grad_() for x in (a, b, temperature)]
    got = info_nce(ours[0], ours[1], temperature=ours[2])
    expected = F.cross_entropy(F.normalize(theirs[0]) @ F.normalize(theirs[1]).T / theirs[2], torch.arange(5))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, ours), torch.autograd.grad(expected, theirs))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("door", [*DOORS, "clip_loss"])
def test_gradients(randn, door, normalize):
    a, b = randn(6, 3, seed=1, grad=True), randn(8, 3, seed=2, grad=True)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    ours = DOORS[door][0] if door in DOORS else lambda a, b, **k: clip_loss(a, b[:6], **k)

    def rows(a, b, temperature):
        return ours(a, b, temperature=temperature, normalize=normalize, reduction="none")

    assert torch.autograd.gradcheck(rows, (a, b, temperature))


@pytest.mark.parametrize(
    ("door", "rule", "treatment"),
    list(product(["info_nce by index", "nt_xent, 3 views", "sup_con"], RULES, TREATMENTS)),
)
def test_gradients_with_false_negatives(randn, door, rule, treatment):
    a, b = randn(6, 2, seed=3, grad=True), randn(8, 2, seed=4, grad=True)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    rule = make_rule(rule, treatment, DOORS[door][2])

    def loss(a, b, temperature):
        rows = DOORS[door][0](a, b, temperature=temperature, false_negatives=rule, reduction="none")
        return rows @ torch.arange(1.0, 7.0, dtype=torch.float64)

    assert torch.autograd.gradcheck(loss, (a, b, temperature))


def test_only_the_gradients_asked_for(randn):
    a, b = randn(4, 3, seed=1, grad=True), randn(4, 3, seed=2, grad=True)
    both = torch.autograd.grad(info_nce(a, b), (a, b))
    assert torch.equal(torch.autograd.grad(info_nce(a, b.detach()), a)[0], both[0])
    assert torch.equal(torch.autograd.grad(info_nce(a.detach(), b), b)[0], both[1])
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(info_nce(a.detach(), b.detach(), temperature=temperature), temperature)[0] != 0
    assert not info_nce(a.detach(), b.detach()).requires_grad


def test_no_gradient_through_a_threshold(randn):
    threshold = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    a = randn(4, 3, grad=True)
    nt_xent(a, false_negatives=FalseNegatives(threshold=threshold)).backward()
    assert threshold.grad is None
    assert not nt_xent(a.detach(), false_negatives=FalseNegatives(threshold=threshold)).requires_grad


def test_true_positives_and_the_row_itself_are_protected(randn):
    """Everything is called a false negative: what is left is the positive alone, or with treatment attract all."""
    z = randn(6, 3)
    everything = {"threshold": -1.0, "topk": 6, "labels": torch.zeros(6, dtype=torch.int64)}
    assert nt_xent(z, false_negatives=FalseNegatives(**everything)).item() == 0
    attracted = nt_xent(z, false_negatives=FalseNegatives(**everything, treatment="attract"))
    torch.testing.assert_close(attracted, sup_con(z, torch.zeros(6, dtype=torch.int64), temperature=0.5))


def test_weights_0_and_1_are_elimination_and_nothing(randn):
    z = randn(6, 3, grad=True)
    for weight, other in ((0.0, FalseNegatives(threshold=0.0)), (1.0, None)):
        ours = nt_xent(z, false_negatives=FalseNegatives(threshold=0.0, treatment="weight", weight=weight))
        theirs = nt_xent(z, false_negatives=other)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z))


def test_labels_per_image_hold_for_all_views(randn):
    z, per_image = randn(6, 3), torch.tensor([2, 2, -1])
    per_row = FalseNegatives(labels=torch.cat([per_image, per_image]))
    assert nt_xent(z, false_negatives=FalseNegatives(labels=per_image)) == nt_xent(z, false_negatives=per_row)
    assert nt_xent(z, false_negatives=per_row) != nt_xent(z)


def test_ties_at_the_topk_cut_all_go():
    a = torch.tensor([[1.0, 0.0]])
    b = torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    rows = info_nce(a, b, temperature=1.0, false_negatives=FalseNegatives(topk=1))
    assert rows.item() == pytest.approx(math.log(math.exp(0.6) + math.exp(-1)) - 0.6, rel=1e-6)


def test_a_cosine_equal_to_the_threshold_stays():
    a = torch.tensor([[1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    kept = info_nce(a, b, temperature=1.0, false_negatives=FalseNegatives(threshold=0.0))
    assert kept.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    gone = info_nce(a, b, temperature=1.0, false_negatives=FalseNegatives(threshold=-0.01))
    assert gone.item() == 0
