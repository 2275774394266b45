"""Planted masking is found, each kind by its flag; honest models are left alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clead.protocols import sanity
from clead.protocols.sanity import quick_checks, thorough_checks


@pytest.fixture(autouse=True)
def without_square(monkeypatch):
    monkeypatch.setattr(sanity, "available", lambda: False)  # 5000 queries an image


def found(checks):
    return {check.flag for check in checks if check.found}


def masked(subject, logits):
    return replace(subject, classifier=replace(subject.classifier, logits=logits))


def test_an_honest_model_raises_nothing(network):
    other = replace(network, seed=8)
    checks = [*quick_checks(network), *thorough_checks(network, "linf", 0.1, [other])]
    assert found(checks) == set()
    assert {check.flag for check in checks if check.found is None} == set() and len(checks) == 13
    assert found(thorough_checks(network, "l2", 0.5)) == set()


def test_noise_is_found(network):
    generator = torch.Generator().manual_seed(0)
    logits = network.classifier.logits
    noisy = masked(network, lambda x: logits(x) + torch.randn(len(x), 5, generator=generator))
    assert found(quick_checks(noisy)) == {"random_outputs"}


def test_softmax_outputs_are_found(network):
    logits = network.classifier.logits
    for times in (1, 2):
        soft = masked(network, lambda x, n=times: [z := logits(x), *[z := z.softmax(1) for _ in range(n)]][-1])
        assert "softmax_outputs" in found(quick_checks(soft))


def test_a_quantised_input_is_found(network):
    logits = network.classifier.logits
    quantised = masked(network, lambda x: logits((x * 15).round() / 15))
    assert {"zero_gradients", "vanishing_gradients"} <= found(quick_checks(quantised))
    late = found(thorough_checks(quantised, "linf", 0.1, [network]))
    assert {"eps_1_is_survived", "transfer_beats_white_box"} <= late


def test_inflated_logits_are_found(network):
    logits = network.classifier.logits
    inflated = masked(network, lambda x: 1e4 * logits(x))
    assert found(quick_checks(inflated)) == {"vanishing_gradients"}
    assert "scale_sensitive" in found(thorough_checks(inflated, "linf", 0.13))


def test_batch_norm_that_looks_at_the_batch_is_found(network):
    module = network.classifier.module

    def logits(x):
        hidden = F.batch_norm(module[0](x), None, None, module[1].weight, module[1].bias, training=True)
        return module[2:](hidden)

    assert found(quick_checks(masked(network, logits))) == {"batch_dependent"}


def test_a_gradient_that_points_the_wrong_way_is_found(network):
    logits = network.classifier.logits

    reversed_gradient = masked(network, lambda x: logits(2 * x.detach() - x))
    assert {"transfer_beats_white_box", "eps_1_is_survived"} <= found(
        thorough_checks(reversed_gradient, "linf", 0.15, [network])
    )


def test_too_few_images_decide_nothing(network):
    few = replace(network, samples=torch.arange(6))
    checks = {check.flag: check.found for check in thorough_checks(few, "linf", 0.1)}
    assert checks["no_fall_with_eps"] is None and not any(checks.values())


def test_the_model_is_left_as_it_was(network):
    module = network.classifier.module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    list(quick_checks(network))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert not any(part.training for part in module.modules() if isinstance(part, nn.BatchNorm2d))
