"""The attack loop against closed forms, and what it must leave untouched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clead.attacks import Constraint, Objective, attack, frozen
from clead.rng import Rng


def stream(size, step=0):
    return Rng.create(7, "attack", torch.arange(size), step)


def linear(weight):
    return lambda x: (x * weight).flatten(1).sum(1)


@pytest.fixture
def x():
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight():
    return torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_linf_reaches_the_closed_form_optimum_of_a_linear_objective(x, weight):
    x_adv = attack(
        linear(weight), x, constraint=Constraint("linf", 0.1), steps=5, step_size=0.05, random_start=True, rng=stream(5)
    )
    best = (x + 0.1 * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-7)


def test_l2_reaches_the_closed_form_optimum_of_a_linear_objective(x, weight):
    x_adv = attack(
        linear(weight),
        x,
        constraint=Constraint("l2", 0.5, bounds=None),
        steps=60,
        step_size=0.1,
        random_start=True,
        rng=stream(5),
    )
    best = x + 0.5 * weight / weight.norm()
    torch.testing.assert_close(linear(weight)(x_adv), linear(weight)(best), rtol=1e-5, atol=1e-5)


def test_l1_reaches_the_closed_form_optimum_of_a_linear_objective(x, weight):
    options = {"steps": 10, "step_size": 0.5, "random_start": True, "l1_sparsity": 0.05, "rng": stream(5)}
    x_adv = attack(linear(weight), x, constraint=Constraint("l1", 0.5, bounds=None), **options)
    # All of the radius on the pixel of largest weight.
    torch.testing.assert_close(
        linear(weight)(x_adv), linear(weight)(x) + 0.5 * weight.abs().max(), rtol=1e-5, atol=1e-5
    )


def test_momentum_remembers_the_first_gradient(x):
    """The gradient turns round after the first step: 1.5 - 1 still points up, 0.5 - 1 down."""
    sizes = iter((1.0, -1.0, 1.0, -1.0))

    def objective(z):
        return (z * next(sizes)).flatten(1).sum(1)

    options = {"constraint": Constraint("linf", 0.3, bounds=None), "steps": 2, "step_size": 0.1, "random_start": False}
    remembers = attack(objective, x, momentum=1.5, rng=stream(5), **options)
    forgets = attack(objective, x, momentum=0.5, rng=stream(5), **options)
    torch.testing.assert_close(remembers, x + 0.2)
    torch.testing.assert_close(forgets, x)


def test_one_full_step_without_random_start_is_fgsm(x, weight):
    def objective(z):
        return (z * weight).flatten(1).sum(1).sin()

    x_adv = attack(
        objective, x, constraint=Constraint("linf", 0.1), steps=1, step_size=0.1, random_start=False, rng=stream(5)
    )
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(objective(point).sum(), point)
    torch.testing.assert_close(x_adv, (x + 0.1 * grad.sign()).clamp(0, 1), rtol=0, atol=1e-7)


def test_eps_zero_returns_x_bitwise(x, weight):
    x_adv = attack(
        linear(weight), x, constraint=Constraint("linf", 0.0), steps=3, step_size=0.1, random_start=True, rng=stream(5)
    )
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_batch_a_sample_is_in_does_not_matter(x, weight, norm):
    def run(images, rng):
        return attack(
            lambda z: (z * weight).square().flatten(1).sum(1),
            images,
            constraint=Constraint(norm, 0.1),
            steps=3,
            step_size=0.03,
            random_start=True,
            rng=rng,
        )

    whole, order = run(x, stream(5)), torch.tensor([3, 0, 4])
    assert torch.equal(run(x[order], stream(5)[order]), whole[order])
    assert torch.equal(run(x[2:3], stream(5)[2:3]), whole[2:3])


def test_best_is_never_below_the_start_or_the_last_iterate(x, weight):
    def objective(z):
        return (20 * z * weight).flatten(1).sum(1).sin()  # many maxima: steps overshoot

    settings = {"constraint": Constraint("linf", 0.2), "steps": 7, "step_size": 0.1, "random_start": False}
    best = attack(objective, x, **settings, keep="best", rng=stream(5))
    last = attack(objective, x, **settings, keep="last", rng=stream(5))
    assert (objective(best) >= objective(x)).all()
    assert (objective(best) >= objective(last)).all()
    assert (objective(best) > objective(last)).any()


def test_eps_and_step_size_per_sample(x, weight):
    eps = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1]).view(5, 1, 1, 1)
    x_adv = attack(
        linear(weight), x, constraint=Constraint("linf", eps), steps=2, step_size=eps, random_start=False, rng=stream(5)
    )
    torch.testing.assert_close(x_adv, (x + eps * weight.sign()).clamp(0, 1), rtol=0, atol=1e-7)


def small_net():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    net.train()
    net[1].eval()  # a mixed state must come back as it was
    net[4].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    return net


@pytest.mark.parametrize("training", [False, True])
def test_an_attack_leaves_the_model_as_it_was(x, training):
    net, labels = small_net(), torch.tensor([0, 1, 2, 3, 0])
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    required = [parameter.requires_grad for parameter in net.parameters()]
    objective = Objective(net, net, lambda z: F.cross_entropy(z, labels, reduction="none"), training=training)
    attack(
        objective,
        x,
        constraint=Constraint(eps=0.1),
        steps=3,
        step_size=0.05,
        random_start=True,
        keep="best",
        rng=stream(5),
    )
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == required
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(parameter.grad is None for parameter in list(net.parameters())[1:])


def test_frozen_restores_after_an_exception():
    net = small_net()
    modes = [module.training for module in net.modules()]
    with pytest.raises(KeyboardInterrupt), frozen(net, training=True):
        raise KeyboardInterrupt
    assert [module.training for module in net.modules()] == modes
    assert net[0].weight.requires_grad and not net[4].bias.requires_grad


def test_training_mode_uses_the_statistics_of_the_batch(x):
    net = nn.BatchNorm2d(1)
    seen = {}
    for training in (False, True):
        objective = Objective(net, net, lambda z: z.flatten(1).sum(1), training=training)
        seen[training] = objective(x)
    mean, var = x.mean(), x.var(correction=0)
    torch.testing.assert_close(seen[True], ((x - mean) / (var + 1e-5).sqrt()).flatten(1).sum(1))
    torch.testing.assert_close(seen[False], (x / (1 + 1e-5) ** 0.5).flatten(1).sum(1))
    assert torch.equal(net.running_mean, torch.zeros(1))


def test_a_stream_is_needed_for_a_random_start_only(x, weight):
    still = {"constraint": Constraint("linf", 0.1), "steps": 1, "step_size": 0.1}
    assert torch.equal(
        attack(linear(weight), x, random_start=False, **still),
        attack(linear(weight), x, random_start=False, rng=stream(5), **still),
    )
    with pytest.raises(ValueError, match="rng must be a stream such as Rng.create"):
        attack(linear(weight), x, random_start=True, **still)
