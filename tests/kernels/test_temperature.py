"""The learnable temperature: its gradient, its bounds, copies of it and code compiled with it."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from clead_kernels import Temperature, clip_loss

pytestmark = pytest.mark.kernels


@pytest.fixture
def pair(randn):
    return randn(6, 5, dtype=torch.float32, seed=1), randn(6, 5, dtype=torch.float32, seed=2)


def test_a_learnable_temperature_is_learnt_within_its_bounds(pair):
    a, b = pair
    temperature = Temperature(0.5, low=0.25, high=1.0)
    assert temperature().item() == pytest.approx(0.5)
    clip_loss(a, b, temperature=temperature()).backward()
    scale = torch.tensor(0.5, requires_grad=True)
    clip_loss(a, b, temperature=scale).backward()
    torch.testing.assert_close(temperature.log_temperature.grad, scale.grad * 0.5)
    for far, bound in ((-9.0, 0.25), (9.0, 1.0)):
        temperature.log_temperature.data.fill_(far)
        (gradient,) = torch.autograd.grad(temperature(), temperature.log_temperature)
        assert temperature().item() == pytest.approx(bound) == math.exp(temperature.log_temperature.item())
        assert gradient.item() == pytest.approx(bound)  # not stuck
    temperature.eval().log_temperature.data.fill_(9.0)
    assert temperature().item() == pytest.approx(1.0) and temperature.log_temperature.item() == 9.0


def test_a_learnable_temperature_is_copied_stored_and_compiled(pair):
    a, b = pair
    temperature = Temperature(0.3)
    for twin in (copy.deepcopy(temperature), pickle.loads(pickle.dumps(temperature))):
        assert torch.equal(twin(), temperature()) and (twin.low, twin.high) == (temperature.low, temperature.high)
        assert twin.log_temperature is not temperature.log_temperature
    twin = Temperature(0.9)
    twin.load_state_dict(temperature.state_dict())
    assert torch.equal(twin(), temperature()) and "0.3" in repr(twin)
    compiled = torch.compile(
        lambda a, b: clip_loss(a, b, temperature=temperature()), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(a, b), clip_loss(a, b, temperature=temperature()))
    assert Temperature(0.5).to(torch.bfloat16)().dtype == torch.bfloat16
