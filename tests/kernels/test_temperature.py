"""The learnable temperature: its gradient, its bounds, copies of it and code compiled with it."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from clead_kernels import FalseNegatives, Temperature, clip_loss, info_nce, nt_xent

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


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1e-8, 1e-5, 1e9, 1e18])
def test_the_ends_of_the_range(randn, temperature, dtype, impl):
    """The closed form in float64, of rows that are multiples of 1/8: the dot products are exact in either dtype."""
    rows = [(randn(12, 5, seed=seed) * 8).round() / 8 for seed in (1, 2)]
    wanted, given = ([x.to(kind, copy=True).requires_grad_() for x in rows] for kind in (torch.float64, dtype))
    scores = wanted[0] @ wanted[1].mT / temperature
    scores = scores - scores.diagonal()[:, None]
    expected = scores.logsumexp(1)
    expected.sum().backward()
    loss = info_nce(*given, temperature=temperature, normalize=False, reduction="none", impl=impl)
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for x, y in zip(given, wanted, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-6 / temperature)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("form", [{}, {"debias": 0.25}, {"hard_negative_beta": 1.0}, {"hard_negative_beta": 1e-3}])
def test_without_contrast_the_loss_counts_the_negatives(randn, form, impl):
    """Itself, the positive and the eliminated ones stay out, whatever the temperature."""
    z, labels = randn(12, 5, dtype=torch.float32, seed=3), torch.arange(12) % 3
    rule = FalseNegatives(labels=labels)
    for temperature in (1e6, 1e12, 1e18):
        loss = nt_xent(z, temperature=temperature, false_negatives=rule, reduction="none", impl=impl, **form)
        assert loss.tolist() == pytest.approx([math.log(1 + 8)] * 12, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.9e-8, 1.1e18])
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_beyond_the_range_is_refused(pair, temperature, impl):
    for given in (temperature, torch.tensor(temperature)):
        with pytest.raises(ValueError, match=r"temperature must be in \[1e-8, 1e18\], got"):
            info_nce(*pair, temperature=given, impl=impl)
    for given in (1e-8, 1e18):
        assert info_nce(*pair, temperature=torch.tensor(given), impl=impl).isfinite()
    if impl == "native":  # where values are not looked at before
        compiled = torch.compile(lambda t: info_nce(*pair, temperature=t, impl=impl), backend="aot_eager")
        with pytest.raises(RuntimeError, match="temperature must be"):
            compiled(torch.tensor(temperature))
