"""open_clip's loss against loops over CLIP's formula, and against the library itself where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from clead_kernels.compat.open_clip import ClipLoss

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def loop(images, texts, scale, bias=0.0):
    n, losses = len(images), []
    for i in range(n):
        there = torch.stack([scale * (images[i] * texts[j]).sum() for j in range(n)]) + bias
        back = torch.stack([scale * (texts[i] * images[j]).sum() for j in range(n)]) + bias
        losses += [there.logsumexp(0) - there[i], back.logsumexp(0) - back[i]]
    return torch.stack(losses).mean()


@pytest.fixture
def theirs():
    """Its file alone: the package would import torchvision and timm."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("no open_clip")
    file = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [torch.tensor(14.3), torch.tensor([14.3])], ids=["0-d", "1-d"])
def test_features_and_scale_get_their_gradients(randn, agrees, dtype, scale):
    # 1 / 0.07 is where CLIP starts. Rows of any length: nothing is normalised.
    agrees(ClipLoss(), loop, 0.4 * randn(5, 7), 0.4 * randn(5, 7, seed=1), scale, dtype=dtype)


def test_a_scale_in_half_precision_is_not_rounded_again():
    rows, scale = 0.1 * torch.ones(2, 2), torch.tensor(97.0, dtype=torch.bfloat16)
    rows = rows * torch.tensor([[1.0], [3.0]])
    assert ClipLoss()(rows, rows, scale).item() == pytest.approx(ClipLoss()(rows, rows, 97.0).item(), rel=1e-6)


def test_a_number_as_scale(randn, agrees):
    agrees(lambda x, y: ClipLoss()(x, y, 3), lambda x, y: loop(x, y, 3), randn(5, 7), randn(5, 7, seed=1))


def test_a_bias_changes_nothing_and_gets_a_gradient_of_zero(randn, agrees):
    bias = torch.tensor(-10.0)
    agrees(
        lambda x, y, b: ClipLoss()(x, y, 3.0, b),
        lambda x, y, b: loop(x, y, 3.0, b),
        randn(5, 7),
        randn(5, 7, seed=1),
        bias,
    )
    parameter = bias.requires_grad_()
    ClipLoss()(randn(5, 7), randn(5, 7, seed=1), 3.0, parameter).backward()
    assert parameter.grad is not None


def test_output_as_a_dictionary(randn):
    arguments = (randn(5, 7), randn(5, 7, seed=1), 3.0)
    assert ClipLoss()(*arguments, output_dict=True) == {"contrastive_loss": ClipLoss()(*arguments)}


@pytest.mark.parametrize("scale", [0.0, -1.0, torch.tensor(0.0), torch.tensor(float("nan"))])
def test_wrong_scale(randn, scale):
    with pytest.raises(ValueError, match="logit_scale must be positive and finite, got"):
        ClipLoss()(randn(5, 7), randn(5, 7), scale)


def test_what_is_not_supported(randn):
    with pytest.raises(NotImplementedError, match="use_horovod=True is not supported"):
        ClipLoss(use_horovod=True)
    with pytest.raises(NotImplementedError, match=r"logit_bias must have one element, got \[5\]"):
        ClipLoss()(randn(5, 7), randn(5, 7), 3.0, torch.zeros(5))
    with pytest.raises(ValueError, match=r"logit_scale must be a float or a tensor of one element, got \[5\]"):
        ClipLoss()(randn(5, 7), randn(5, 7), torch.ones(5))


def test_the_library_agrees(randn, agrees, theirs):
    scale, bias = torch.tensor(9.0), torch.tensor(2.0)
    agrees(ClipLoss(), theirs, randn(5, 7), randn(5, 7, seed=1), scale, bias)
