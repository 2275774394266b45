import math
from copy import deepcopy

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


def test_warm_up_from_a_share_of_the_peak():
    # RoCL: 0.1 to 1.5 over ten epochs.
    config = OptimizerConfig(lr=1.5, warmup_epochs=10, warmup_start=1 / 15, schedule="constant")
    rates = [learning_rate(config, step, steps_per_epoch=1, epochs=20) for step in range(11)]
    assert rates == pytest.approx([0.1 + 1.4 * (step + 1) / 10 for step in range(10)] + [1.5])


def test_steps_fall_at_the_milestones_even_where_their_shares_are_no_binary_fractions():
    for epochs, steps_per_epoch in ((76, 1), (76, 390), (120, 97)):
        config = OptimizerConfig(lr=1.0, schedule="step", milestones=((epochs - 3) / epochs, (epochs - 1) / epochs))
        first, second = (epochs - 3) * steps_per_epoch, (epochs - 1) * steps_per_epoch
        for step, expected in ((0, 1.0), (first - 1, 1.0), (first, 0.1), (second - 1, 0.1), (second, 0.01)):
            assert learning_rate(config, step, steps_per_epoch, epochs) == pytest.approx(expected)


def test_every_milestone_may_have_its_own_factor():
    # CLAE's plain recipe: .03, then .1, .05 and .01 of it.
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


def lars_by_loops(weights, gradients, *, lr, momentum, decay, trust, excluded):
    """Lists of numbers, tensor by tensor, for every step's gradients."""
    velocities = [[0.0] * len(weight) for weight in weights]
    for step in gradients:
        for index, (w, g) in enumerate(zip(weights, step, strict=True)):
            beta = 0.0 if index in excluded else decay
            w_norm, g_norm = math.sqrt(sum(v * v for v in w)), math.sqrt(sum(v * v for v in g))
            adapted = index not in excluded and w_norm > 0 and g_norm > 0
            factor = trust * w_norm / (g_norm + beta * w_norm) if adapted else 1.0
            for j in range(len(w)):
                velocities[index][j] = momentum * velocities[index][j] + factor * (g[j] + beta * w[j])
                w[j] -= lr * velocities[index][j]
    return weights


@pytest.mark.parametrize("exclude", [False, True])
def test_lars_equals_loops(exclude):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (4,), (2, 3, 1, 1), (2, 2), (5,)]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weights[3].zero_()  # a zero-initialised head must be able to leave zero
    gradients = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(4)]
    gradients[2][0].zero_()
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    config = OptimizerConfig(
        name="lars", lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.02, exclude_vectors=exclude, schedule="constant"
    )
    optimizer = build_optimizer(parameters, config)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    expected = lars_by_loops(
        [weight.flatten().tolist() for weight in weights],
        [[gradient.flatten().tolist() for gradient in step] for step in gradients],
        **{"lr": 0.5, "momentum": 0.9, "decay": 0.1, "trust": 0.02, "excluded": {1, 4} if exclude else set()},
    )
    for parameter, values in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.data.flatten(), torch.tensor(values, dtype=torch.float64))


def test_lars_passes_over_parameters_without_a_gradient_and_continues_from_its_state():
    config = OptimizerConfig(name="lars", lr=0.5)
    used, unused = (torch.nn.Parameter(torch.full((2, 2), 3.0)) for _ in range(2))
    whole = build_optimizer([used, unused], config)
    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in (used, unused)]
    for step in range(4):
        used.grad = torch.full((2, 2), 1.0 + step)
        whole.step()
        if step == 1:
            halfway = deepcopy(whole.state_dict())
            copies[0].data.copy_(used.data)
            resumed = build_optimizer(copies, config)
            resumed.load_state_dict(halfway)
        if step > 1:
            copies[0].grad = used.grad.clone()
            resumed.step()
    assert torch.equal(used, copies[0]) and not torch.equal(used, torch.full((2, 2), 3.0))
    assert torch.equal(unused, torch.full((2, 2), 3.0))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_vectors_can_be_left_out_of_weight_decay(name):
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.5, exclude_vectors=True)
    optimizer = build_optimizer([matrix, vector], config)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(vector, torch.ones(2)) and bool((matrix < 1).all())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"milestones": (0.8, 0.6)}, "milestones must be ascending shares"),
        ({"milestones": (60.0, 90.0)}, "milestones must be ascending shares"),
        ({"gamma": (0.1, 0.1, 0.1)}, "gamma must be 1 or 2 factors"),
        ({"gamma": (0.0,)}, "gamma must be above 0"),
        ({"warmup_start": 15.0}, "warmup_start must be in"),
        ({"trust": 0.0}, "trust must be above 0"),
    ],
)
def test_impossible_schedules_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        OptimizerConfig(**settings)
