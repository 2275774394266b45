import math

import pytest
import torch

from clead.config import OptimizerConfig
from clead.engine.optim import build_optimizer, learning_rate
from clead.errors import UserError


def test_warm_up_then_cosine_to_zero():
    config = OptimizerConfig(lr=0.4, warmup_epochs=2)
    rate = [learning_rate(config, step, steps_per_epoch=5, epochs=4) for step in range(20)]
    assert all(math.isclose(rate[step], 0.4 * (step + 1) / 10) for step in range(10))
    assert math.isclose(rate[10], 0.4)
    assert math.isclose(rate[15], 0.2)
    assert 0 < rate[19] < 0.01
    assert math.isclose(learning_rate(config, 20, 5, 4), 0.0, abs_tol=1e-12)


def test_constant_without_warm_up():
    config = OptimizerConfig(name="adam", lr=1e-3, schedule="constant")
    assert {learning_rate(config, step, 3, 2) for step in range(6)} == {1e-3}


def test_sgd_step_by_hand():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([weight], OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0.25))
    for expected in (2.0 - 0.1 * (1 + 0.5), None):
        weight.grad = torch.ones(1)
        optimizer.step()
        if expected:
            assert math.isclose(weight.item(), expected, rel_tol=1e-6)
    # second step: d = 1 + .25 * 1.85 = 1.4625; v = .5 * 1.5 + d = 2.2125; w = 1.85 - .22125
    assert math.isclose(weight.item(), 1.85 - 0.22125, rel_tol=1e-6)


def float64_loop(name, weights, grads, lr=0.1, momentum=0.9, decay=0.05):
    """Kingma & Ba's algorithm 1 with L2 penalty, Loshchilov & Hutter's algorithm 2, or SGD with momentum."""
    weights = [w.double() for w in weights]
    m, v = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step, step_grads in enumerate(grads, 1):
        for i, g in enumerate(step_grads):
            if g is None:
                continue
            g, w = g.double(), weights[i]
            g = g if name == "adamw" else g + decay * w
            if name == "sgd":
                m[i] = momentum * m[i] + g
                weights[i] = w - lr * m[i]
                continue
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            direction = (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            weights[i] = w - lr * direction - (lr * decay * w if name == "adamw" else 0)
    return weights


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_steps_by_a_loop_in_float64(name):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((300, 40), (70,), (8, 3, 3, 3))]
    start[2] = start[2].to(memory_format=torch.channels_last)
    grads = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(4)]
    if name == "sgd":
        grads[0][1] = None  # a parameter may get its first gradient later than others
    weights = [torch.nn.Parameter(w.clone()) for w in start]
    optimizer = build_optimizer(weights, OptimizerConfig(name, lr=0.1, momentum=0.9, weight_decay=0.05))
    assert optimizer.defaults["fused"]
    for step in grads:
        optimizer.zero_grad()
        # By autograd, which gives a gradient the layout of its weight: a fused step takes both for flat memory.
        sum((w * g).sum() for w, g in zip(weights, step, strict=True) if g is not None).backward()
        optimizer.step()
    for weight, expected in zip(weights, float64_loop(name, start, grads), strict=True):
        assert ((weight.detach().double() - expected).norm() / expected.norm()).item() < 1e-6


def test_lars_by_a_loop_in_float64():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(4, generator=generator), torch.zeros(2, 2)]
    grads = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(3)]
    grads[1][0].zero_()
    for decay_vectors in (True, False):
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        config = OptimizerConfig("lars", lr=2.0, momentum=0.9, weight_decay=0.01, decay_vectors=decay_vectors)
        optimizer = build_optimizer(weights, config)
        truth, velocity = [w.double() for w in start], [torch.zeros_like(w, dtype=torch.float64) for w in start]
        for grad in grads:
            for index, g in enumerate(grad):
                weights[index].grad = g.clone()
                plain = not decay_vectors and truth[index].dim() == 1
                decay, w = 0.0 if plain else 0.01, truth[index]
                ratio = 0.001 * w.norm() / (g.double().norm() + decay * w.norm()) if w.norm() and g.norm() else 1.0
                velocity[index] = 0.9 * velocity[index] + (1.0 if plain else ratio) * (g.double() + decay * w)
                truth[index] = w - 2.0 * velocity[index]
            optimizer.step()
        for weight, expected in zip(weights, truth, strict=True):
            torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-7)


def test_lars_state_survives_saving():
    def run(steps, state=None):
        weight = torch.nn.Parameter(torch.ones(2, 2) if state is None else state[0].clone())
        optimizer = build_optimizer([weight], OptimizerConfig("lars", lr=1.0))
        if state is not None:
            optimizer.load_state_dict(state[1])
        for step in steps:
            weight.grad = torch.full((2, 2), 1.0 + step)
            optimizer.step()
        return weight.detach(), optimizer.state_dict()

    assert torch.equal(run(range(4))[0], run(range(2, 4), run(range(2)))[0])


def test_steps_fall_at_the_milestones_even_where_these_are_no_binary_fractions():
    for epochs, steps_per_epoch in ((76, 1), (76, 390), (120, 97)):
        config = OptimizerConfig(lr=1.0, schedule="step", milestones=((epochs - 3) / epochs, (epochs - 1) / epochs))
        first, second = (epochs - 3) * steps_per_epoch, (epochs - 1) * steps_per_epoch
        for step, expected in ((0, 1.0), (first - 1, 1.0), (first, 0.1), (second - 1, 0.1), (second, 0.01)):
            assert math.isclose(learning_rate(config, step, steps_per_epoch, epochs), expected)


def test_every_milestone_may_have_its_own_factor():
    # CLAE's plain code: .03, then .1, .05 and .01 of it.
    config = OptimizerConfig(lr=0.03, schedule="step", milestones=(0.4, 0.5, 0.7), gamma=(0.1, 0.5, 0.2))
    rates = [learning_rate(config, epoch, 1, 10) for epoch in range(10)]
    assert rates == pytest.approx([0.03] * 4 + [0.003] + [0.0015] * 2 + [0.0003] * 3)


def test_cyclic_is_the_triangle_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    rival = torch.optim.lr_scheduler.CyclicLR(sgd, base_lr=0.0, max_lr=0.2, step_size_up=15, step_size_down=15)
    config = OptimizerConfig(lr=0.2, schedule="cyclic")
    for step in range(30):
        assert learning_rate(config, step, steps_per_epoch=5, epochs=6) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        rival.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_vectors_can_be_left_out_of_weight_decay(name):
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.5, decay_vectors=False)
    optimizer = build_optimizer([matrix, vector], config)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(vector, torch.ones(2)) and bool((matrix < 1).all())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"milestones": (0.8, 0.6)}, "milestones must be ascending fractions"),
        ({"milestones": (60.0, 90.0)}, "milestones must be ascending fractions"),
        ({"gamma": (0.1, 0.1, 0.1)}, "gamma must be 1 or 2 factors"),
        ({"gamma": (0.0,)}, "gamma must be above 0"),
        ({"warmup_lr": 15.0}, "warmup_lr must be in"),
        ({"final_lr": 0.2}, "final_lr must be in"),
        ({"trust": 0.0}, "trust must be above 0"),
    ],
)
def test_impossible_schedules_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        OptimizerConfig(**settings)


def test_warm_up_and_cosine_between_given_rates():
    config = OptimizerConfig(lr=0.5, warmup_epochs=1, warmup_lr=0.01, final_lr=0.0005)
    assert math.isclose(learning_rate(config, 0, 4, 3), 0.01 + 0.49 / 4)
    assert math.isclose(learning_rate(config, 3, 4, 3), 0.5)
    assert math.isclose(learning_rate(config, 12, 4, 3), 0.0005)
