import math
from dataclasses import replace

import pytest
import torch

from clead.errors import UserError
from clead.losses import cancelled_nt_xent
from clead.recipes import RECIPES


def cosines(rows):
    unit = [[value / math.hypot(*row) for value in row] for row in rows]
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in unit] for a in unit]


def alike(rows, threshold):
    """Pairs of images (a, b) with any two of their views more alike than the threshold; rows are two views."""
    s, size = cosines(rows), len(rows) // 2
    return {(i % size, j % size) for i in range(len(rows)) for j in range(len(rows)) if s[i][j] > threshold}


def expand(pairs, size, num_views):
    """Rows (i, j) of views of different images in ``pairs``."""
    rows = range(size * num_views)
    return {(i, j) for i in rows for j in rows if i % size != j % size and (i % size, j % size) in pairs}


def above(rows, threshold):
    """Rows (i, j) that are more alike than the threshold themselves."""
    s = cosines(rows)
    return {(i, j) for i in range(len(rows)) for j in range(len(rows)) if s[i][j] > threshold}


@pytest.mark.parametrize("source", ["clean", "self"])
def test_both_terms_lose_the_false_negatives(small, nt_xent_loops, source):
    method, model, batch = small(
        "a_rocl", mask_source=source, progress=0.5, threshold_start=1.0, threshold_end=0.96, regularization=0.5
    )
    views = method.views(batch)
    first, second = views.chunk(2)
    cancelled = method.cancelled(model, views, batch)
    x_adv = method.adversary(model, first, second, batch, cancelled)
    t, other, adv = (model.embed(x, branch="clean").tolist() for x in (first, second, x_adv))
    three, two, tau = [*t, *other, *adv], [*adv, *other], method.config.temperature
    if source == "clean":
        pairs = alike([*t, *other], 0.98)
        left_out = expand(pairs, 6, 3), expand(pairs, 6, 2)
    else:
        left_out = above(three, 0.98), above(two, 0.98)
    assert all(0 < len(found) < 6 * 5 * 4 for found in left_out)  # else the test says nothing
    expected = {
        "contrast": sum(2 * row for row in nt_xent_loops(three, tau, 3, left_out[0])) / 18,
        "regularization": sum(nt_xent_loops(two, tau, 2, left_out[1])) / 12 / 2,
    }
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("source", ["clean", "self"])
def test_the_attack_spends_nothing_on_cancelled_negatives(small, nt_xent_loops, check_attack, source):
    method, model, batch = small("a_rocl", mask_source=source, threshold_start=0.98)
    views = method.views(batch)
    first, second = views.chunk(2)
    cancelled = method.cancelled(model, views, batch)
    keys, tau = model.embed(second, branch="clean").tolist(), method.config.temperature
    pairs = expand(alike(model.embed(views, branch="clean").tolist(), 0.98), 6, 2)

    def loss(x):
        rows = [*model.embed(x, branch="clean").tolist(), *keys]
        return sum(nt_xent_loops(rows, tau, 2, pairs if source == "clean" else above(rows, 0.98)))

    x_adv = method.adversary(model, first, second, batch, cancelled)
    assert not torch.equal(x_adv, method.adversary(model, first, second, batch))
    check_attack(loss, first, x_adv, eps=0.15)


def test_the_pairs_are_found_with_the_statistics_of_the_batch_and_change_none(small):
    method, model, batch = small("a_rocl", threshold_start=0.98)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    views = method.views(batch)
    pairs = method.cancelled(model, views, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rows = model.embed(views, branch="clean").tolist()  # in train mode
    assert {(a, b) for a, b in alike(rows, 0.98) if a != b} == set(map(tuple, pairs.nonzero().tolist()))


def test_the_numbers_logged_by_hand(small):
    # At cosine -1 every negative goes: of each image the 5 others, in two views. Images 0 and 3, 1 and 4, 2 and 5
    # share a class.
    method, model, batch = small("a_rocl", threshold_start=-1.0)
    metrics = {}
    method.training_loss(model, replace(batch, metrics=metrics))
    values = {name: value.item() for name, value in metrics.items()}
    assert values == {"cancelled_pairs": 10.0, "cancelled_precision": 0.2, "cancelled_recall": 1.0}


def test_an_implementation_that_cannot_is_refused():
    with pytest.raises(UserError, match="impl must be auto or reference with mask_source=clean, got native"):
        replace(RECIPES["a_rocl_digits"].config, impl="native")
    assert replace(RECIPES["a_rocl_digits"].config, impl="native", mask_source="self")


@pytest.mark.parametrize("num_views", [2, 3])
def test_the_loss_without_pairs_of_images_equals_loops(nt_xent_loops, num_views):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(4 * num_views, 3, dtype=torch.float64, generator=generator)
    pairs = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    left_out = expand({(0, 1), (1, 0), (2, 3), (3, 2)}, 4, num_views)
    found = cancelled_nt_xent(rows, pairs, temperature=0.3, num_views=num_views)
    assert found.tolist() == pytest.approx(nt_xent_loops(rows.tolist(), 0.3, num_views, left_out), rel=1e-10)
