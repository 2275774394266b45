import math
from dataclasses import replace

import pytest
import torch

from clead.errors import UserError
from clead.losses import clead_loss
from clead.recipes import RECIPES


def expected_terms(contrastive_row, original, perturbed, negatives, temperature):
    """Eq. 2 by loops over lists of rows."""
    size, terms = len(original), {}
    for name, own in perturbed.items():
        total = 0.0
        for i in range(size):
            others = [j for j in range(size) if j != i]
            sets = {
                "same_attack": [own],
                "all_views": [*perturbed.values(), original],
                "clean": [original],
            }[negatives]
            candidates = [own[i], *(rows[j] for rows in sets for j in others)]
            total += contrastive_row(original[i], candidates, [0], range(len(candidates)), temperature)
        terms[name] = total / size / len(perturbed)
    return terms


@pytest.mark.parametrize("negatives", ["same_attack", "all_views", "clean"])
@pytest.mark.parametrize("attacks", [("cw",), ("pgd", "cw"), ("pgd", "cw", "fgsm")])
def test_the_loss_is_equation_2(contrastive_row, negatives, attacks):
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(4)]
    perturbed = dict(zip(attacks, rows[1:], strict=False))
    terms = clead_loss(rows[0], perturbed, temperature=0.3, negatives=negatives)
    lists = {name: z.tolist() for name, z in perturbed.items()}
    expected = expected_terms(contrastive_row, rows[0].tolist(), lists, negatives, 0.3)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("negatives", "attacks"), [("same_attack", ("fgsm", "pgd", "cw")), ("all_views", ("fgsm",)), ("clean", ("pgd",))]
)
@pytest.mark.parametrize("independent", [False, True])
def test_a_step_trains_on_the_images_of_its_attacks(small, contrastive_row, negatives, attacks, independent):
    method, model, batch = small("clead", negatives=negatives, attacks=attacks, independent_views=independent)
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    x, start = views[0], views[int(independent)]
    perturbed = method.perturbations(model, x, start, batch)
    assert all(((x_adv - start).abs() <= 0.15 * (1 + 1e-6)).all() for x_adv in perturbed.values())
    assert tuple(perturbed) == attacks
    rows = {name: model.embed(x_adv, branch="clean").tolist() for name, x_adv in perturbed.items()}
    original = model.embed(x, branch="clean").tolist()
    expected = expected_terms(contrastive_row, original, rows, negatives, method.config.temperature)
    terms = method.training_loss(model, batch)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("negatives", ["same_attack", "all_views", "clean"])
def test_pgd_and_fgsm_raise_the_term_they_are_trained_on(small, contrastive_row, check_attack, negatives):
    attacks = ("pgd",) if negatives == "clean" else ("pgd", "fgsm")
    method, model, batch = small("clead", negatives=negatives, attacks=attacks)
    original = model.embed(batch.images, branch="clean").tolist()

    def loss(x):
        rows = {"any": model.embed(x, branch="clean").tolist()}
        return expected_terms(contrastive_row, original, rows, negatives, method.config.temperature)["any"]

    for x_adv in method.perturbations(model, batch.images, batch.images, batch).values():
        check_attack(loss, batch.images, x_adv, eps=0.15)


def test_from_another_view_fgsm_has_a_gradient_even_where_all_negatives_are_clean(small, contrastive_row, check_attack):
    method, model, batch = small("clead", negatives="clean", attacks=("fgsm",), independent_views=True)
    x, start = (method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1))
    original = model.embed(x, branch="clean").tolist()

    def loss(images):
        rows = {"any": model.embed(images, branch="clean").tolist()}
        return expected_terms(contrastive_row, original, rows, "clean", method.config.temperature)["any"]

    check_attack(loss, start, method.perturbations(model, x, start, batch)["fgsm"], eps=0.15)


def margin_of(model, original):
    """max over j != i of the cosine to image j, minus that to the image itself; summed over i, by loops."""

    def margin(x):
        rows, total = model.embed(x, branch="clean").tolist(), 0.0
        for i, anchor in enumerate(original):
            s = [
                sum(p * q for p, q in zip(anchor, row, strict=True)) / math.hypot(*anchor) / math.hypot(*row)
                for row in rows
            ]
            total += max(s[j] for j in range(len(s)) if j != i) - s[i]
        return total

    return margin


def test_cw_raises_the_instance_margin(small, check_attack):
    method, model, batch = small("clead", attacks=("cw",))
    margin = margin_of(model, model.embed(batch.images, branch="clean").tolist())
    check_attack(margin, batch.images, method.perturbations(model, batch.images, batch.images, batch)["cw"], eps=0.15)


def test_the_l2_form_of_cw_stays_in_its_own_ball(small):
    method, model, batch = small("clead", attacks=("cw",), cw="l2")
    x, eps = batch.images, method.config.cw_l2.eps
    x_adv = method.perturbations(model, x, x, batch)["cw"]
    lengths = (x_adv - x).flatten(1).norm(dim=1)
    assert (lengths <= eps * (1 + 1e-5)).all() and (x_adv >= 0).all() and (x_adv <= 1).all()
    assert (x_adv - x).abs().max() > 0.15 / 2  # no linf step: it spends its budget where it pays
    margin = margin_of(model, model.embed(x, branch="clean").tolist())
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(s), dtype=x.dtype) for s in range(10)]
    random = [(x + eps * n / n.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1) for n in noise]
    assert margin(x_adv) > max(map(margin, [x, *random]))


def test_settings_that_make_no_sense_are_refused():
    config = RECIPES["clead_digits"].config
    for change, message in (
        ({"attacks": ()}, "attacks must be one or more different ones of fgsm, pgd, cw"),
        ({"attacks": ("pgd", "pgd")}, "attacks must be one or more different ones of fgsm, pgd, cw"),
        ({"attacks": ("fgsm",), "negatives": "clean"}, "negatives must be same_attack or all_views with fgsm"),
        ({"cw_l2": config.attack}, "cw_l2.norm must be l2, got linf"),
    ):
        with pytest.raises(UserError, match=message):
            replace(config, **change)
