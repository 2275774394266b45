"""TRADES, MART and fast adversarial training: what their attacks raise, and what they leave alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clead.losses import kl_divergence, mart_loss


def test_the_trades_attack_raises_the_divergence(small, check_attack):
    method, model, batch = small("trades")
    x = method.augment(batch.images, batch.rng("augment"))
    with torch.no_grad():
        clean = model.logits(x, branch="clean")
    x_adv = method.diverge(model, x, batch)
    check_attack(lambda images: kl_divergence(model.logits(images, branch="clean"), clean).mean(), x, x_adv, 0.15)


@pytest.mark.parametrize("name", ["pgd_at", "mart", "fast_at"])
def test_the_others_ascend_cross_entropy(small, check_attack, name):
    method, model, batch = small(name)
    seen = []
    original = model.logits

    def spy(images, branch):
        seen.append(images.detach())
        return original(images, branch)

    model.logits = spy
    terms = method.training_loss(model, batch)
    del model.logits
    x = method.augment(batch.images, batch.rng("augment"))
    x_adv = seen[-1][-len(x) :]

    def loss(images):
        return F.cross_entropy(model.logits(images, branch="clean"), batch.labels)

    check_attack(loss, x, x_adv, 0.15)
    with torch.no_grad():
        if name != "mart":
            assert terms["ce_adv"] == loss(x_adv)
        else:
            logits = [model.logits(images, branch="clean") for images in (x, x_adv)]
            expected = mart_loss(*logits, batch.labels, beta=5.0)
            assert all(torch.allclose(terms[key], expected[key], rtol=1e-9) for key in ("bce", "kl"))


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "fast_at"])
def test_only_the_training_pass_moves_the_running_statistics(small, name):
    method, model, batch = small(name)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running_" in key}
    method.training_loss(model, batch)
    after = model.state_dict()
    assert all(not torch.equal(after[key], value) for key, value in before.items())
    tracked = [value for key, value in after.items() if key.endswith("num_batches_tracked")]
    assert all(int(value) == 21 for value in tracked)  # 20 by the fixture


def test_fast_training_looks_half_way_to_its_images_now_and_then(small):
    method, model, batch = small("fast_at", size=60)
    x = method.augment(batch.images, batch.rng("augment"))
    for step, names in ((20, {"adv_accuracy", "halfway_accuracy"}), (21, set())):
        metrics = {}
        method.misclassified(model, x, replace(batch, step=step, metrics=metrics), training=True)
        assert set(metrics) == names and model.training is False
    seen = {}
    x_adv = method.misclassified(model, x, replace(batch, step=0, metrics=seen), training=True)
    for name, images in (("adv_accuracy", x_adv), ("halfway_accuracy", x_adv - 0.5 * (x_adv - x))):
        guesses = [int(model.logits(image[None], branch="clean").argmax()) for image in images]
        right = sum(guess == label for guess, label in zip(guesses, batch.labels.tolist(), strict=True))
        assert float(seen[name]) == right / 60
