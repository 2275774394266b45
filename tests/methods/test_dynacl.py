import copy
from dataclasses import replace

import pytest
import torch

from clead.methods import METHODS
from clead.recipes import RECIPES


def with_another_momentum_encoder(method, model):
    """The method's momentum encoder, moved away from the model."""
    momentum = method.momentum_model(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in momentum.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return momentum


@pytest.mark.parametrize(("progress", "done"), [(0.0, 0.0), (0.15, 0.15), (0.49, 0.45), (0.999, 0.95)])
def test_streams_are_weighed_and_views_fade_in_stages(small, nt_xent_loops, progress, done):
    method, model, batch = small("dynacl", progress=progress)
    momentum = with_another_momentum_encoder(method, model)
    augment = method.augment.faded(1 - done)
    views = torch.cat([augment(batch.images, batch.rng("augment", view)) for view in (0, 1)])
    x_adv = method.adversaries(model, views, batch)

    def loss(x, branch):
        first, second = model.embed(x[:6], branch=branch), momentum.embed(x[6:], branch=branch)
        return sum(nt_xent_loops([*first.tolist(), *second.tolist()], method.config.temperature)) / 12

    w = 2 / 3 * done
    expected = {"clean": (1 - w) * loss(views, "clean") / 2, "adv": (1 + w) * loss(x_adv, "adv") / 2}
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-10)


def test_both_views_are_perturbed_to_be_told_apart(small, nt_xent_loops, check_attack):
    method, model, batch = small("dynacl", progress=0.5)
    momentum, views = with_another_momentum_encoder(method, model), method.views(batch)

    def loss(x):
        rows = [*model.embed(x[:6], branch="adv").tolist(), *momentum.embed(x[6:], branch="adv").tolist()]
        return sum(nt_xent_loops(rows, method.config.temperature))

    x_adv = method.adversaries(model, views, batch)
    check_attack(loss, views, x_adv, eps=0.15)
    assert ((x_adv - views).abs().amax((1, 2, 3)) > 0.05).all()


def test_the_momentum_encoder_follows_without_gradients(small):
    method, model, batch = small("dynacl", momentum=0.75)
    model.train()
    first = copy.deepcopy(list(model.parameters()))
    for step in range(3):
        sum(method.training_loss(model, replace(batch, step=step)).values()).backward()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        # By hand, in units of 1: 0; .25 (0 + 1) = .25; .75 * .25 + .25 * 2 = .6875.
        distance = (0.0, 0.25, 0.6875)[step]
        for p, start in zip(method.momentum_model(model).parameters(), first, strict=True):
            torch.testing.assert_close(p, start + distance, rtol=0, atol=1e-12)
            assert p.grad is None and not p.requires_grad
    assert all(p.grad is not None for p in model.parameters())


def test_the_momentum_encoder_survives_a_checkpoint(small):
    method, model, batch = small("dynacl")
    with_another_momentum_encoder(method, model)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    again = METHODS["dynacl"](method.config)
    again.load_state_dict(state)
    assert again.state_dict().keys() == state.keys()  # also before the first step after it
    expected, found = (m.training_loss(model, batch)["adv"].item() for m in (method, again))
    assert found == expected
    assert METHODS["dynacl"](method.config).training_loss(model, batch)["adv"].item() != expected


def test_the_recipe_is_that_of_the_code():
    config = RECIPES["dynacl_cifar10"].config
    assert (config.epochs, config.fading_stages, config.reweighting, config.attack.steps) == (1000, 20, 2 / 3, 5)
