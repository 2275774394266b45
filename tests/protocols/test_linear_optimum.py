"""The one model whose answer is known: on a linear classifier the distance to the boundary is |margin| / dual norm."""

from dataclasses import replace

import pytest
import torch

from clead.attacks import Constraint, Objective, attack
from clead.attacks.autoattack import available
from clead.attacks.cw_l2 import _to_the_boundary, cw_l2
from clead.losses import margin
from clead.protocols.attempts import cross_entropy
from clead.protocols.catalogue import find_attack
from clead.protocols.robustness import attack_all
from clead.rng import Rng

NORMS = ("linf", "l2", "l1")
RIGHT = slice(5, None)  # the first five images are wrong as they are


def distances(linear, norm):
    """To the boundary, float64 [60]."""
    subject, margins = linear
    weight = subject.classifier.module.weight.detach().double().flatten()
    return margins / weight.norm({"linf": 1, "l2": 2, "l1": torch.inf}[norm])


def lengths(difference, norm):
    return difference.double().flatten(1).norm(p=float(norm[1:]), dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", [cross_entropy, margin], ids=["pgd", "cw"])
def test_pgd_and_cw_need_exactly_the_distance(linear, loss, norm):
    subject, _ = linear
    weight = subject.classifier.module.weight.detach().double()
    x, labels = subject.test.images.double() / 255, subject.labels
    exact = distances(linear, norm)

    def logits(images):
        score = ((images - 0.5) * weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)

    for factor, expected in ((1 - 1e-3, True), (1 + 1e-3, False)):
        eps = (factor * exact).view(-1, 1, 1, 1)
        x_adv = attack(
            Objective(subject.classifier.module, logits, lambda z: loss(z, labels)),
            x,
            constraint=Constraint(norm, eps),
            steps=40,
            step_size=eps / 2,
            random_start=True,
            keep="best",
            rng=Rng.create(3, "eval_attack", torch.arange(60)),
        )
        right = logits(x_adv).argmax(1) == labels
        assert right[RIGHT].tolist() == [expected] * 55


# Steps of 2.5 eps / steps turn an l2 perturbation most of the way, not all of it.
@pytest.mark.parametrize(("name", "near"), [("pgd100_l1", 2e-3), ("pgd20_l2", 0.02), ("pgd20", 2e-3), ("cw", 2e-3)])
def test_accuracies_are_those_of_the_closed_form(linear, name, near):
    spec = find_attack(name)
    exact = distances(linear, spec.norm)
    for eps in exact[RIGHT].quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist():
        clear = (exact - eps).abs() > near * eps
        robust = attack_all(linear[0], spec, eps).robust
        assert clear.sum() > 50 and not robust[:5].any()
        assert torch.equal(robust[RIGHT][clear[RIGHT]], (exact > eps)[RIGHT][clear[RIGHT]])


def test_cw_l2_finds_the_distance(linear):
    outcome = attack_all(linear[0], replace(find_attack("cw_l2"), steps=40), 1.0, skip=False)
    ratio = outcome.distance[RIGHT] / distances(linear, "l2")[RIGHT]
    assert ratio.min() > 1 - 1e-4 and ratio.max() < 1 + 1e-3
    assert (outcome.distance[:5] < 1e-5).all()


def test_cw_l2_finds_the_nearest_point_of_an_ellipsoid():
    """Where a straight way to the boundary misses the nearest point; that is known by one Lagrange multiplier."""
    weights = torch.tensor([4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    widths = 0.12 * torch.tensor([1.0, 0.8, 0.6, 0.4, 0.3, 0.2])
    offsets = widths * torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)

    def outside(x):
        return (weights * (x.flatten(1) - 0.5) ** 2).sum(1) - 1

    _, distance = cw_l2(outside, (0.5 + offsets).view(-1, 1, 2, 3), steps=50)
    # x' - 0.5 = offset / (1 - multiplier weight), on the ellipsoid; by bisection from inside.
    a, d = weights.double(), offsets.double()
    low, high = torch.zeros(32, 1, dtype=torch.float64), torch.full((32, 1), 1 / 128, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        beyond = (a * (d / (1 - middle * a)) ** 2).sum(1, keepdim=True) > 1
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    exact = (d / (1 - low * a) - d).norm(dim=1)
    assert (distance / exact).min() > 1 - 1e-5 and (distance / exact).max() < 1 + 2e-3


def test_cw_l2_keeps_a_point_that_rounding_would_lose():
    x, found = (torch.tensor([value]).view(1, 1, 1, 1) for value in (0.295, 0.797))
    assert x + (found - x) < found
    nearest, distance = _to_the_boundary(lambda point: (point >= found).flatten().double() - 0.5, x, found)
    assert torch.equal(nearest, found) and distance.isfinite().all()


def test_cw_l2_says_so_where_there_is_nothing_to_find(linear):
    x = linear[0].images
    x_adv, distance = cw_l2(lambda point: -1 - point.flatten(1).sum(1).square(), x, steps=3, searches=2)
    assert distance.isinf().all() and torch.equal(x_adv, x)


@pytest.mark.skipif(not available(), reason="needs pyautoattack (the extra evaluation)")
@pytest.mark.parametrize("norm", NORMS)
def test_fab_finds_the_distance(linear, norm):
    subject, _ = linear
    exact = distances(linear, norm)[RIGHT]
    outcome = attack_all(subject, find_attack("fab", norm=norm), 1.0, skip=False)
    assert not outcome.robust.any()
    found = (outcome.x_adv - subject.images)[RIGHT]
    ratio = lengths(found, norm) / exact
    assert ratio.min() > 1 - 1e-4 and ratio.max() < 1.007  # it steps 5% over the boundary and halves that three times
    weight = subject.classifier.module.weight.detach().double()
    score = ((subject.images[RIGHT].double() - 0.5) * weight).flatten(1).sum(1)
    moved = (found.double() * weight).flatten(1).sum(1)
    torch.testing.assert_close(
        lengths(found, norm) * (-score / moved), exact, rtol=1e-3, atol=0
    )  # its direction is exact
    for eps in exact.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist():
        clear = (exact - eps).abs() > 7e-3 * eps
        robust = attack_all(replace(subject, batch_size=60), find_attack("fab", norm=norm), eps).robust[RIGHT]
        assert torch.equal(robust[clear], (exact > eps)[clear])
