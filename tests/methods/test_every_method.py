"""One table, one body: what holds for every method."""

import io
import json
from dataclasses import fields, replace

import pytest
import torch

from clead.cli import config_values, read_config
from clead.config import EncoderConfig, TrainConfig
from clead.data import load_digits
from clead.loading import InputSpec, build_model
from clead.methods import METHODS, Batch
from clead.models import initialise
from clead.models.batch_norm import BatchNormConfig
from clead.recipes import RECIPES
from clead_kernels import dispatch

SPEC = InputSpec(in_channels=1, num_classes=10, mean=(0.3,), std=(0.4,))
EVERY_METHOD = pytest.mark.parametrize("name", sorted(METHODS))


def images(size=12):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator), torch.arange(size) % 10


def make(name, **changes):
    method = METHODS[name](replace(RECIPES[f"{name}_digits"].config, **changes))
    model = build_model(method, SPEC)
    initialise(model, seed=3)
    train = load_digits().train
    method.start_epoch(model, train.batch, len(train), epoch=0)
    return method, model


def batch(step=0):
    x, labels = images()
    return Batch(x, labels, torch.arange(len(x)), step, seed=5)


@EVERY_METHOD
def test_two_steps_change_every_trained_weight(name):
    method, model = make(name)
    model.train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        terms = method.training_loss(model, batch(step))
        assert all(term.dim() == 0 and torch.isfinite(term) for term in terms.values())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


@EVERY_METHOD
def test_the_loss_does_not_depend_on_the_global_generators(name):
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        method, model = make(name)
        model.train()
        state = torch.get_rng_state()
        losses.append(sum(method.training_loss(model, batch()).values()).item())
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1]


@EVERY_METHOD
def test_a_step_leaves_mode_gradients_and_global_state(name):
    method, model = make(name)
    model.train()
    method.training_loss(model, batch())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@EVERY_METHOD
def test_an_attack_leaves_the_model_as_it_was(name, monkeypatch):
    method, model = make(name)
    model.train()
    attacks = []

    def state():
        return [(value.clone(), value.requires_grad, value.grad) for value in (*model.parameters(), *model.buffers())]

    def watched(*args, **settings):
        before = state()
        x_adv = perturb(*args, **settings)
        attacks.append(x_adv)
        for (old, needed, old_grad), (new, needs, grad) in zip(before, state(), strict=True):
            assert torch.equal(old, new) and needs == needed and grad is old_grad is None
        assert all(module.training for module in model.modules()) and not x_adv.requires_grad
        return x_adv

    perturb = method.perturb
    monkeypatch.setattr(method, "perturb", watched)
    method.training_loss(model, batch())
    assert bool(attacks) == hasattr(method.config, "attack")


@EVERY_METHOD
def test_a_step_after_a_checkpoint_is_the_step_without_one(name):
    method, model = make(name)
    model.train()

    def step(index):
        terms = method.training_loss(model, replace(batch(index), progress=index / 4))
        gradients = torch.autograd.grad(sum(terms.values()), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        return {term: value.item() for term, value in terms.items()}

    step(0)
    kept = io.BytesIO()
    torch.save((model.state_dict(), method.state_dict()), kept)
    expected = [step(1), step(2)]
    kept.seek(0)
    weights, state = torch.load(kept)
    method = METHODS[name](method.config)
    model = build_model(method, SPEC).train()
    model.load_state_dict(weights)
    method.load_state_dict(state)
    assert [step(1), step(2)] == expected


def losses_of(name, impl, steps=20):
    """The losses of the first optimiser steps on small batches of the digits, in float64."""
    attack = getattr(RECIPES[f"{name}_digits"].config, "attack", None)
    shorter = {"attack": replace(attack, steps=min(attack.steps, 2))} if attack else {}  # it runs 40 times
    method, model = make(name, impl=impl, **shorter)
    model.double()
    train = load_digits().train
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(steps):
        samples = torch.arange(step * 8, (step + 1) * 8)
        images = train.batch(samples).double()
        terms = method.training_loss(model, Batch(images, train.labels[samples], samples, step, seed=5))
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@EVERY_METHOD
def test_the_first_twenty_losses_agree_across_implementations(name):
    # In float32 an attack makes a whole step of a gradient's last bit, and twenty of them let that grow to percents.
    torch.testing.assert_close(losses_of(name, "auto"), losses_of(name, "reference"), rtol=1e-9, atol=0)


@EVERY_METHOD
def test_the_config_survives_json(name, tmp_path):
    config = RECIPES[f"{name}_digits"].config
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"schema": 1, "method": name, "recipe": "r", "values": config_values(config)}))
    assert read_config(file) == (name, "r", config)


@EVERY_METHOD
def test_documentation_and_registration(name):
    method = METHODS[name]
    assert method.paper and (method.__doc__ or "").splitlines()[0].endswith(".")
    assert set(method.ops) <= set(dispatch.OPS)
    assert issubclass(method.Config, TrainConfig)
    undocumented = [f.name for f in fields(method.Config) if f.name not in {g.name for g in fields(TrainConfig)}]
    assert all(hasattr(RECIPES[f"{name}_cifar10"].config, field) for field in undocumented)


@EVERY_METHOD
def test_recipes_name_their_method_and_data(name):
    for data in ("digits", "cifar10"):
        recipe = RECIPES[f"{name}_{data}"]
        assert (recipe.method, recipe.config.data) == (name, data)
        assert type(recipe.config) is METHODS[name].Config


def test_clead_digits_is_the_recipe_that_was_asked_for():
    config = RECIPES["clead_digits"].config
    assert (config.attack.eps, config.attack.step_size, config.attack.steps) == (0.15, 0.075, 5)
    assert config.epochs * (1197 // config.batch_size) >= 500
    assert {0.1, 0.15} <= set(config.evaluation.eps)
    assert config.compare == ("undefended", "random")


def test_clead_with_an_adversarial_branch_keeps_statistics_apart():
    bn = BatchNormConfig(branches=("clean", "adv"), evaluation_branch="adv")
    method, model = make("clead", encoder=EncoderConfig("digits_cnn", bn))
    model.train()
    method.training_loss(model, batch())
    means = {key: value for key, value in model.state_dict().items() if key.endswith("running_mean")}
    assert any(".branch.adv." in key for key in means)
    for key, value in means.items():
        assert not torch.equal(value, torch.zeros_like(value)), key
        if ".branch.adv." in key:
            assert not torch.equal(value, means[key.replace(".adv.", ".clean.")])


def test_pgd_at_trains_on_attacked_images():
    import torch.nn.functional as F

    method, model = make("pgd_at")
    model.eval()  # so that the loss of the step can be compared with the loss on clean images
    b = batch()
    clean = F.cross_entropy(model.logits(method.augment(b.images, b.rng("augment")), branch="clean"), b.labels)
    assert method.training_loss(model, b)["ce_adv"] > clean
