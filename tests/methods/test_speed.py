"""Every lever of a training step against the plain step: the same loss, gradients and statistics."""

from dataclasses import replace

import pytest
import torch

from clead.config import SpeedConfig
from clead.data import load_digits
from clead.loading import InputSpec, build_model
from clead.methods import METHODS, Batch
from clead.models import initialise
from clead.recipes import RECIPES

SPEC = InputSpec(in_channels=1, num_classes=10, mean=(0.3,), std=(0.4,))
EVERY_METHOD = pytest.mark.parametrize("name", sorted(METHODS))
PLAIN = SpeedConfig(fold=False)
LEVERS = SpeedConfig(fold=True, channels_last=True)


def step(name, speed, *, size=12, dtype=torch.float32, steps=2, moved=3):
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
    computing = model.computing_in(speed.compute_dtype)
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
