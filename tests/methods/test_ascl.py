import json
import math
from dataclasses import replace

import pytest
import torch

from clead.errors import UserError
from clead.losses import ascl_loss
from clead.methods import Batch
from clead.models import BatchNormConfig
from clead.recipes import RECIPES
from clead.train import main

LABELS = [0, 1, 0, 2, 1, 0]


def eq9(contrastive_row, views, adversarial, labels, temperature):
    """Eq. 9 by loops: views [2B] and adversarial images [B] as lists."""
    size = len(labels)
    everything, total = [*views, *adversarial], 0.0
    for i in range(2 * size):
        positives = [2 * size + p for p in range(size) if labels[p] == labels[i % size]]
        denominator = [a for a in range(3 * size) if a != i]
        total += contrastive_row(everything[i], everything, positives, denominator, temperature) / (2 * size)
    return total


def three_views(contrastive_row, rows, temperature):
    """NT-Xent of three views by loops, mean over both partners."""
    size, total = len(rows) // 3, 0.0
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if j % size == i % size]
        total += contrastive_row(rows[i], rows, positives, others, temperature) / len(rows)
    return total


def cross_entropy(logits, labels):
    rows = zip(logits, labels, strict=True)
    return sum(math.log(sum(map(math.exp, row))) - row[y] for row, y in rows) / len(labels)


def softmax(row):
    weights = [math.exp(value) for value in row]
    return [weight / sum(weights) for weight in weights]


def divergence(logits, logits_adv):
    """KL(p || p_adv) of every row, by loops."""
    rows = zip(map(softmax, logits), map(softmax, logits_adv), strict=True)
    return [sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) for p, q in rows]


def test_eq_9_by_hand():
    # One class, one image, its views at 0 and 180 degrees and its adversarial image at 90: cosines -1, 0, 0.
    views, adversarial = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    loss = ascl_loss(views, adversarial, torch.tensor([7]), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def inputs_of(method, batch):
    """x and the two views, as the method augments them."""
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    return method.adv_augment(batch.images, batch.rng("augment", 2)), torch.cat(views)


@pytest.mark.parametrize("perturbations", ["ensemble", "label_based", "label_free"])
def test_the_loss_is_equation_10(small, contrastive_row, perturbations):
    method, model, batch = small("ascl", labels=LABELS, perturbations=perturbations)
    crafted_by = {"label_based": "at", "label_free": "cl"}.get(perturbations)
    x = {term: method.perturbed(model, method.inputs(batch), crafted_by or term) for term in ("at", "cl", "ascl")}
    assert torch.equal(x["at"], x["cl"]) == (crafted_by is not None)
    weak, strong = inputs_of(method, batch)
    assert all((it - weak).abs().max() <= 0.15 * (1 + 1e-6) for it in x.values())
    views = model.embed(strong, branch="clean").tolist()
    adversarial = {term: model.embed(x[term], branch="adv").tolist() for term in ("cl", "ascl")}
    tau = method.config.temperature
    expected = {
        "ce_adv": cross_entropy(model.logits(x["at"], branch="adv").tolist(), LABELS),
        "cl": 0.5 * three_views(contrastive_row, [*views, *adversarial["cl"]], tau),
        "ascl": 0.2 * eq9(contrastive_row, views, adversarial["ascl"], LABELS, tau),
    }
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("at_term", ["trades", "mart"])
def test_trades_and_mart_can_stand_for_adversarial_training(small, at_term):
    method, model, batch = small("ascl", labels=LABELS, at_term=at_term, beta=5.0, cl_weight=0.0, ascl_weight=0.0)
    inputs = method.inputs(batch)
    logits = model.logits(inputs.x, branch="adv").tolist()
    logits_adv = model.logits(method.perturbed(model, inputs, "at"), branch="adv").tolist()
    kl = divergence(logits, logits_adv)
    if at_term == "trades":
        expected = {"ce": cross_entropy(logits, LABELS), "kl": 5 * sum(kl) / 6}
    else:
        p, p_adv = list(map(softmax, logits)), list(map(softmax, logits_adv))
        runner_up = [max(q[k] for k in range(10) if k != y) for q, y in zip(p_adv, LABELS, strict=True)]
        bce = [-math.log(q[y]) - math.log(1 - r) for q, y, r in zip(p_adv, LABELS, runner_up, strict=True)]
        wrong = [1 - q[y] for q, y in zip(p, LABELS, strict=True)]
        expected = {"bce": sum(bce) / 6, "kl": 5 * sum(k * w for k, w in zip(kl, wrong, strict=True)) / 6}
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-6)  # other forms of MART add 1e-4 inside a logarithm


def test_trades_in_ascl_ascends_the_divergence(small, check_attack):
    method, model, batch = small("ascl", at_term="trades")
    inputs = method.inputs(batch)
    logits = model.logits(inputs.x, branch="adv").tolist()
    x_adv = method.perturbed(model, inputs, "at")
    check_attack(lambda x: sum(divergence(logits, model.logits(x, branch="adv").tolist())), inputs.x, x_adv, eps=0.15)


def test_eqs_5_and_8_contrast_adversarial_views_alone(small, contrastive_row):
    method, model, batch = small("ascl", labels=LABELS, pairs="adv_adv")
    views = inputs_of(method, batch)[1]
    rows = {}
    for term in ("cl", "ascl"):
        x_adv = method.perturbed(model, method.inputs(batch), term)
        assert x_adv.shape == views.shape and 0 < (x_adv - views).abs().max() <= 0.15 * (1 + 1e-6)
        rows[term] = model.embed(x_adv, branch="adv").tolist()
    expected = {"cl": 0.0, "ascl": 0.0}
    for i in range(12):
        others = [j for j in range(12) if j != i]
        positives = {"cl": [(i + 6) % 12], "ascl": [j for j in others if LABELS[j % 6] == LABELS[i % 6]]}
        for term, weight in (("cl", 0.5), ("ascl", 0.2)):
            z = rows[term]
            row = contrastive_row(z[i], z, positives[term], others, method.config.temperature)
            expected[term] += weight * row / 12
    terms = method.training_loss(model, batch)
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-10)


def test_every_perturbation_raises_its_own_loss(small, contrastive_row, check_attack):
    method, model, batch = small("ascl", labels=LABELS)
    inputs = method.inputs(batch)
    views, tau = model.embed(inputs.views, branch="clean").tolist(), method.config.temperature

    def embed(x):
        return model.embed(x, branch="adv").tolist()

    losses = {
        "at": lambda x: cross_entropy(model.logits(x, branch="adv").tolist(), LABELS),
        "cl": lambda x: three_views(contrastive_row, [*views, *embed(x)], tau),
        "ascl": lambda x: eq9(contrastive_row, views, embed(x), LABELS, tau),
    }
    for term, loss in losses.items():
        check_attack(loss, inputs.x, method.perturbed(model, inputs, term), eps=0.15)


def test_the_views_of_eq_8_are_perturbed_jointly(small, contrastive_row, check_attack):
    method, model, batch = small("ascl", labels=LABELS, pairs="adv_adv")
    inputs = method.inputs(batch)

    def loss(x):
        rows = model.embed(x, branch="adv").tolist()
        return sum(
            contrastive_row(rows[i], rows, [(i + 6) % 12], [j for j in range(12) if j != i], method.config.temperature)
            for i in range(12)
        )

    check_attack(loss, inputs.views, method.perturbed(model, inputs, "cl"), eps=0.15)


def test_a_term_without_weight_is_left_out(small):
    method, model, batch = small("ascl", cl_weight=0.0)
    assert list(method.training_loss(model, batch)) == ["ce_adv", "ascl"]
    method, model, batch = small("ascl", cl_weight=0.0, ascl_weight=0.0)
    assert list(method.training_loss(model, batch)) == ["ce_adv"]
    assert method.trained_branches == ("adv",)


def test_clean_views_never_reach_the_adversarial_statistics(small):
    method, model, batch = small("ascl", cl_weight=0.0, ascl_weight=0.0)
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.train()
    method.training_loss(model, batch)
    changed = {key for key, value in before.items() if not torch.equal(model.state_dict()[key], value)}
    assert changed == {key for key in before if ".branch.adv." in key}


def test_settings_that_contradict_each_other_are_refused():
    config = RECIPES["ascl_digits"].config
    with pytest.raises(UserError, match="pairs must be view_adv with label_free, got adv_adv"):
        replace(config, pairs="adv_adv", perturbations="label_free")
    with pytest.raises(UserError, match="with unlabeled_data, got label_based"):
        replace(config, unlabeled_data="digits", perturbations="label_based")


def test_unlabelled_images_enter_the_term_without_labels_only(small):
    method, model, batch = small("ascl", labels=LABELS)
    other = Batch(batch.images.flip(0), torch.full((6,), -1), torch.arange(10, 16), batch.step, batch.seed)
    alone, both = (method.training_loss(model, b) for b in (batch, replace(batch, unlabeled=other)))
    assert both["ce_adv"].item() == alone["ce_adv"].item() and both["ascl"].item() == alone["ascl"].item()
    assert both["cl"].item() == method.training_loss(model, replace(other, labels=batch.labels))["cl"].item()
    assert both["cl"].item() != alone["cl"].item()


def test_a_run_with_unlabelled_data(tmp_path):
    flags = "--epochs 1 --train-samples 256 --stages pretrain --unlabeled-data digits"
    main(["ascl", *flags.split(), "--out", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {"ce_adv", "cl", "ascl"} <= set(lines[0])


def test_the_recipes_are_the_rows_of_the_tables():
    full = RECIPES["ascl_cifar10"].config
    assert (full.attack.eps, full.attack.step_size, full.batch_size) == (8 / 255, 2 / 255, 512)
    # Table 1 has one fine-tuning, table 7 all four.
    row = replace(full, stages=("pretrain", "adv_linear_eval", "evaluate"))
    assert RECIPES["ascl_label_free_cifar10"].config == replace(row, perturbations="label_free")
    assert RECIPES["ascl_same_bn_cifar10"].config.encoder.bn == BatchNormConfig()
