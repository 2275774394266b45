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


def test_steps_fall_at_fractions_of_the_stage():
    config = OptimizerConfig(lr=1.0, schedule="step", milestones=(0.8, 0.6))
    rate = [learning_rate(config, step, steps_per_epoch=2, epochs=5) for step in range(10)]
    expected = [1.0] * 6 + [0.1] * 2 + [0.01] * 2
    assert all(math.isclose(found, wanted) for found, wanted in zip(rate, expected, strict=True))
    config = OptimizerConfig(lr=1.0, schedule="step", milestones=(0.8, 0.6), gamma=(0.1, 0.5))
    rate = [learning_rate(config, step, steps_per_epoch=2, epochs=5) for step in range(10)]
    assert rate == [1.0] * 6 + [0.1] * 2 + [0.05] * 2
    with pytest.raises(UserError, match="gamma must be 1 or 2 factors"):
        OptimizerConfig(milestones=(0.6, 0.8), gamma=(0.1, 0.1, 0.1))


def test_cyclic_peaks_at_two_fifths_and_ends_at_zero():
    config = OptimizerConfig(lr=0.2, schedule="cyclic")
    rate = [learning_rate(config, step, steps_per_epoch=10, epochs=10) for step in range(101)]
    assert rate[0] == 0 and math.isclose(rate[20], 0.1) and math.isclose(rate[40], 0.2) and rate[100] == 0
    assert math.isclose(rate[70], 0.1)


def test_warm_up_and_cosine_between_given_rates():
    config = OptimizerConfig(lr=0.5, warmup_epochs=1, warmup_lr=0.01, final_lr=0.0005)
    assert math.isclose(learning_rate(config, 0, 4, 3), 0.01 + 0.49 / 4)
    assert math.isclose(learning_rate(config, 3, 4, 3), 0.5)
    assert math.isclose(learning_rate(config, 12, 4, 3), 0.0005)
