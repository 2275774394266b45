import pytest
import torch

from clead.config import EncoderConfig
from clead.recipes import RECIPES

SEPARATE = RECIPES["acl_digits"].config.encoder


def views_of(method, batch):
    return torch.cat([method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)])


@pytest.mark.parametrize(("encoder", "branch"), [(SEPARATE, "adv"), (EncoderConfig("digits_cnn"), "clean")])
def test_the_loss_is_equation_5_with_separate_or_the_same_batch_norm(small, nt_xent_loops, encoder, branch):
    method, model, batch = small("acl", encoder=encoder)
    views = views_of(method, batch)
    x_adv = method.adversaries(model, views, batch)
    expected = {
        "clean": sum(nt_xent_loops(model.embed(views, branch="clean").tolist(), method.config.temperature)) / 12 / 2,
        "adv": sum(nt_xent_loops(model.embed(x_adv, branch=branch).tolist(), method.config.temperature)) / 12 / 2,
    }
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-10)
    assert method.trained_branches == ("clean", branch)


def test_both_views_are_perturbed_to_be_told_apart(small, nt_xent_loops, check_attack):
    method, model, batch = small("acl")
    views = views_of(method, batch)
    x_adv = method.adversaries(model, views, batch)

    def loss(x):
        return sum(nt_xent_loops(model.embed(x, branch="adv").tolist(), method.config.temperature))

    check_attack(loss, views, x_adv, eps=0.15)
    moved = (x_adv - views).abs().amax((1, 2, 3))
    assert (moved > 0.05).all()


def test_the_streams_keep_their_statistics_apart(small):
    method, model, batch = small("acl")
    before = {name: value.clone() for name, value in model.state_dict().items() if "running_mean" in name}
    model.train()
    views = views_of(method, batch)
    x_adv = method.adversaries(model, views, batch)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    method.training_loss(model, batch)
    for name, images in (("clean", views), ("adv", x_adv)):
        key = f"encoder.bn1.branch.{name}.running_mean"
        means = model.encoder.conv1(model.encoder.normalize(images)).mean((0, 2, 3))
        torch.testing.assert_close(model.state_dict()[key], 0.9 * before[key] + 0.1 * means, rtol=1e-9, atol=1e-12)
