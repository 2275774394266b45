import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clead.attacks import frozen
from clead.config import AttackConfig
from clead.errors import UserError
from clead.methods.clae import CLAE


def contrast_by_loops(contrastive_row, base, anchors, others, temperature):
    """The base's loss between two lists of rows."""
    size, both = len(anchors), [*anchors, *others]
    if base == "plain":
        rows = [contrastive_row(anchors[i], others, [i], range(size), temperature) for i in range(size)]
        return sum(rows) / size
    total = 0.0
    for i in range(2 * size):
        partner, rest = (i + size) % (2 * size), [j for j in range(2 * size) if j != i]
        # e^{-loss} with j in the partner's place is j's share.
        share = {j: math.exp(-contrastive_row(both[i], both, [j], rest, temperature)) for j in rest}
        total -= math.log(share[partner])
        if base == "uel":
            total -= sum(math.log(1 - share[j]) for j in rest if j != partner)
    return total / (2 * size)


def views_of(method, batch):
    return [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]


@pytest.mark.parametrize("base", ["simclr", "plain", "uel"])
def test_the_loss_is_equation_10(small, contrastive_row, base):
    method, model, batch = small("clae", base=base, alpha=0.7)
    views = views_of(method, batch)
    z_1, z_2 = (model.embed(view, branch="clean").tolist() for view in views)
    z_adv = model.embed(method.adversary(model, views[0], batch), branch="adv").tolist()
    tau = method.config.temperature
    expected = {
        "clean": contrast_by_loops(contrastive_row, base, z_1, z_2, tau),
        "adv": 0.7 * contrast_by_loops(contrastive_row, base, z_1, z_adv, tau),
    }
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("base", ["simclr", "plain", "uel"])
def test_the_attack_raises_the_loss_with_the_statistics_of_the_batch(small, contrastive_row, check_attack, base):
    method, model, batch = small("clae", base=base, clip=True)
    x = batch.images

    def embed(images):
        with frozen(model, training=True):
            return model.embed(images, branch="adv").tolist()

    anchors = embed(x)

    def loss(images):
        return contrast_by_loops(contrastive_row, base, anchors, embed(images), method.config.temperature)

    check_attack(loss, x, method.adversary(model, x, batch), eps=0.05)


def test_without_a_random_start_the_negatives_alone_say_where_to_go(small):
    # At d = 0 the cosine of a positive pair is at its maximum 1: held constant, it must not change the direction.
    method, model, batch = small("clae", base="plain")
    x = batch.images.clone().requires_grad_()
    with frozen(model, training=True):
        z = F.normalize(model.embed(x, branch="adv"))
    s = z.detach() @ z.T / method.config.temperature
    negatives = s.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf).exp().sum(1)
    (grad,) = torch.autograd.grad((negatives + math.exp(1 / method.config.temperature)).log().sum(), x)
    found = (method.adversary(model, x, batch) - x.detach()) / 0.05
    clear = grad.abs() > 1e-9 * grad.abs().max()
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(found[clear], grad[clear].sign(), rtol=0, atol=1e-9)


def test_the_attack_leaves_statistics_and_gradients_alone(small):
    method, model, batch = small("clae")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.adversary(model, batch.images, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_r_fgsm_walks_half_along_random_signs_and_half_by_the_gradient(small):
    method, model, batch = small("clae", random_signs=True)
    d = (method.adversary(model, batch.images, batch) - batch.images) / 0.05
    counts = [((d - value).abs() < 1e-9).sum().item() for value in (-1, 0, 1)]
    assert sum(counts) == d.numel() and min(counts) > d.numel() / 20
    other = method.adversary(model, batch.images, replace(batch, step=3)) - batch.images
    assert not torch.equal(d, other / 0.05)  # every step has its own signs


def test_eps_is_in_units_of_the_channel_scale_and_nothing_is_clipped(small):
    method, model, batch = small("clae", channel_scale=(0.4,))
    d = method.adversary(model, batch.images, batch) - batch.images
    torch.testing.assert_close(d.abs(), torch.full_like(d, 0.02), rtol=1e-9, atol=0)  # black pixels go below 0 too


def test_a_wrong_number_of_channels_is_one_sentence(small):
    method, model, batch = small("clae", channel_scale=(0.4, 0.4, 0.4))
    with pytest.raises(UserError, match="channel_scale must hold 1 value"):
        method.training_loss(model, batch)


def test_r_fgsm_is_one_step_of_the_whole_radius():
    for attack in (AttackConfig(steps=2), AttackConfig(0.03, 0.02, 1, random_start=False)):
        with pytest.raises(UserError, match="random_signs must be off where attack is not FGSM, got True"):
            CLAE.Config(random_signs=True, attack=attack)
