"""Every lever of a training step against the plain step: the same loss, gradients and statistics."""

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from clead import models
from clead.attacks import runner
from clead.config import SpeedConfig
from clead.data import load_digits
from clead.loading import InputSpec, build_model
from clead.methods import METHODS, Batch
from clead.models import Pass, initialise
from clead.recipes import RECIPES

SPEC = InputSpec(in_channels=1, num_classes=10, mean=(0.3,), std=(0.4,))
EVERY_METHOD = pytest.mark.parametrize("name", sorted(METHODS))
PLAIN = SpeedConfig(winograd=False, fold=False)
LEVERS = SpeedConfig(fold=True, channels_last=True)


def step(name, speed, *, size=12, dtype=torch.float32, steps=2, moved=3, chunk=None):
    """Loss, gradients and state after ``moved`` steps without an update; weights and statistics like no others."""
    method = METHODS[name](replace(RECIPES[f"{name}_digits"].config, speed=speed))
    if hasattr(method.config, "attack"):
        # CLAE's attack starts at x, where the loss is stationary in the positives and the gradient's sign is round-off.
        method.config = replace(method.config, attack=replace(method.config.attack, steps=steps, random_start=True))
    model = build_model(method, SPEC)
    initialise(model, seed=3)
    model.to(dtype).train()
    with torch.no_grad():
        for index, (_, weight) in enumerate(sorted(model.named_parameters())):
            weight += 0.05 * torch.arange(weight.numel(), dtype=dtype).add(index).sin().view_as(weight)
    train = load_digits().train
    method.start_epoch(model, lambda samples: train.batch(samples).to(dtype), len(train), epoch=0)
    if speed.channels_last:
        model.to(memory_format=torch.channels_last)
    computing = model.computing_in(speed.compute_dtype, chunk)
    for number in range(moved):
        samples = torch.arange(size) + size * number
        batch = Batch(train.batch(samples).to(dtype), train.labels[samples], samples, number, seed=5, progress=0.3)
        model.zero_grad()
        loss = sum(method.training_loss(computing, batch).values())
        loss.backward()
    return loss.item(), {key: value.grad for key, value in model.named_parameters()}, model.state_dict()


def norm(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).norm().item()


def differences(one, other):
    """Relative, of the losses and of all gradients together; and of the statistics."""
    gradients = [one[1][key] - other[1][key] for key in one[1]]
    states = [one[2][key] - other[2][key] for key in one[2]]
    loss = abs(one[0] - other[0]) / abs(one[0])
    return loss, norm(gradients) / norm(one[1].values()), norm(states) / norm(one[2].values())


@EVERY_METHOD
def test_in_float64_only_the_order_of_sums_differs(name):
    found = differences(*(step(name, speed, dtype=torch.float64) for speed in (PLAIN, LEVERS)))
    assert max(found) < 1e-11


@EVERY_METHOD
def test_in_float32_it_agrees_to_five_digits(name):
    # One step: where a gradient's sign hangs on its last bit, more of them would move a pixel by a whole step.
    found = differences(*(step(name, speed, steps=1, moved=1) for speed in (PLAIN, LEVERS)))
    assert max(found) < 1e-5


def with_activations_kept(_, x, *, chunk, encode):
    return torch.cat([encode(part) for part in x.tensor_split(-(-len(x) // chunk))])


@pytest.mark.parametrize("name", ["simclr", "fnc", "adaptive_fnc", "acl", "clae"])
def test_a_cached_step_is_that_of_chunks_whose_activations_are_kept(name, monkeypatch):
    options = {"dtype": torch.float64, "steps": 1, "moved": 1, "chunk": 5}
    cached = step(name, SpeedConfig(), **options)
    monkeypatch.setattr(models.model, "cached_encoding", with_activations_kept)
    assert max(differences(step(name, SpeedConfig(), **options), cached)) < 1e-11


@pytest.mark.parametrize("name", ["simclr", "sup_con", "plain", "uel", "acl"])
def test_a_cached_step_is_the_plain_one_where_batch_norm_mixes_no_images(name, monkeypatch):
    monkeypatch.setattr(models.Model, "train", lambda model, mode=True: torch.nn.Module.train(model, False))
    options = {"dtype": torch.float64, "steps": 1, "moved": 1}
    plain, cached = (step(name, SpeedConfig(), chunk=chunk, **options) for chunk in (None, 5))
    assert max(differences(plain, cached)) < 1e-11


@pytest.mark.parametrize("name", ["simclr", "pgd_at", "acl", "rocl", "clead", "ascl", "advcl", "dynacl"])
def test_bfloat16_is_close(name):
    plain, half = (step(name, speed, steps=1, moved=1) for speed in (PLAIN, SpeedConfig(precision="bf16")))
    loss, gradients, states = differences(plain, half)
    assert 0 < loss < 0.05 and gradients < 0.5 and states < 0.02
    assert all(grad.dtype == torch.float32 for grad in half[1].values())


def traced(function, sample):
    """Like a captured graph: the operations of one run on the tensors it read, for inputs of this shape alone."""
    graph, shape = make_fx(function)(sample.detach()), sample.shape

    def run(x):
        assert x.shape == shape
        return graph(x)

    return run


def weights_after(name, speed, sizes=(8, 8, 5, 8), eps=(0.1, 0.15, 0.2, 0.2)):
    """Of a few optimiser steps in float64, the batches and radii of different sizes."""
    method = METHODS[name](replace(RECIPES[f"{name}_digits"].config, speed=speed))
    model = build_model(method, SPEC)
    initialise(model, seed=3)
    model.double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train = load_digits().train
    for number, (size, radius) in enumerate(zip(sizes, eps, strict=True)):
        method.config = replace(method.config, attack=replace(method.config.attack, steps=2, eps=radius))
        samples = torch.arange(size) + 10 * number
        batch = Batch(train.batch(samples).double(), train.labels[samples], samples, number, seed=5)
        optimizer.zero_grad()
        sum(method.training_loss(model, batch).values()).backward()
        optimizer.step()
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("name", ["pgd_at", "acl", "clead", "dynacl", "clae"])
def test_replayed_attacks_see_the_weights_images_and_radii_of_their_own_step(name, monkeypatch):
    monkeypatch.setitem(runner._BUILDERS, "graph", traced)
    plain, replayed = (weights_after(name, speed) for speed in (PLAIN, SpeedConfig(executor="graph")))
    torch.testing.assert_close(replayed, plain, rtol=1e-8, atol=1e-10)


def test_a_model_that_was_replaced_gets_a_view_of_its_own():
    method = METHODS["pgd_at"](RECIPES["pgd_at_digits"].config)
    x, encode = load_digits().train.batch(torch.arange(4)), Pass("logits", "clean")
    model = build_model(method, SPEC)
    initialise(model, seed=3)
    method.constant(model, encode, x)
    other = build_model(method, SPEC)
    initialise(other, seed=4)
    model.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(method.constant(model, encode, x), encode(other.eval(), x))
    double = method.constant(model.double(), encode, x.double())
    torch.testing.assert_close(double, encode(other.double(), x.double()))
