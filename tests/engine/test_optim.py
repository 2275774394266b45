import math

import torch

from clead.config import OptimizerConfig
from clead.engine.optim import build_optimizer, learning_rate


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
