import pytest
import torch
import torch.nn.functional as F

from clead.config import AttackConfig


def views_of(method, batch):
    return [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]


def test_the_loss_is_equation_6_with_a_logarithm_per_positive(small, nt_xent_loops):
    method, model, batch = small("rocl")
    first, second = views_of(method, batch)
    x_adv = method.adversary(model, first, second, batch)
    t, other, adv = (model.embed(x, branch="clean").tolist() for x in (first, second, x_adv))
    tau = method.config.temperature
    expected = {
        # The code adds the two positives of a row, and divides by the 3N rows.
        "contrast": sum(2 * row for row in nt_xent_loops([*t, *other, *adv], tau, num_views=3)) / 18,
        "regularization": sum(nt_xent_loops([*adv, *other], tau)) / 12 / 256,
    }
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-10)


def test_the_attack_moves_away_from_the_other_view(small, nt_xent_loops, check_attack):
    method, model, batch = small("rocl")
    first, second = views_of(method, batch)
    keys, tau = model.embed(second, branch="clean").tolist(), method.config.temperature

    def loss(x):
        return sum(nt_xent_loops([*model.embed(x, branch="clean").tolist(), *keys], tau))

    check_attack(loss, first, method.adversary(model, first, second, batch), eps=0.15)


def test_a_step_of_the_attack_follows_the_gradient_against_constant_keys_of_the_other_view(small):
    method, model, batch = small("rocl", attack=AttackConfig(eps=0.15, step_size=0.05, steps=1, random_start=False))
    first, second = views_of(method, batch)
    x = first.clone().requires_grad_()
    z, other = (F.normalize(model.embed(images, branch="clean")) for images in (x, second))
    s = z @ torch.cat([z, other]).detach().T / method.config.temperature
    itself = torch.cat([torch.eye(6), torch.zeros(6, 6)], 1).bool()
    loss = s.masked_fill(itself, -torch.inf).logsumexp(1) - s[:, 6:].diagonal()
    (grad,) = torch.autograd.grad(loss.sum(), x)
    expected = (first + 0.05 * grad.sign()).clamp(0, 1)
    clear = grad.abs() > 1e-9 * grad.abs().max()
    found = method.adversary(model, first, second, batch)
    torch.testing.assert_close(found[clear], expected[clear], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_views", [2, 3])
def test_keys_carry_no_gradient(small, num_views):
    method, _, _ = small("rocl")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * num_views, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    s = F.normalize(rows) @ F.normalize(rows.detach()).T / method.config.temperature
    log_p = s.fill_diagonal_(-torch.inf).log_softmax(1)
    partners = [[j for j in range(len(rows)) if j != i and j % 4 == i % 4] for i in range(len(rows))]
    expected = -sum(log_p[i, p].mean() for i, p in enumerate(partners))
    found = method.contrast(rows, num_views=num_views).sum()
    for a, b in zip(torch.autograd.grad(found, rows), torch.autograd.grad(expected, rows), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_without_weight_the_second_term_is_left_out(small):
    method, model, batch = small("rocl", regularization=0.0)
    assert list(method.training_loss(model, batch)) == ["contrast"]
