"""Layouts of feature maps change speed and rounding, nothing else."""

import pytest
import torch

from clead.models import BatchNormConfig, ResNet, initialise
from clead.models.layout import laid_out
from clead_kernels import _native

WIDE, NARROW = 256, 128  # 3x3 weights of 2.4 MB and of 0.6 MB
LAST, FIRST = torch.channels_last, torch.contiguous_format


def images(form=FIRST, **options):
    x = torch.rand(4, 3, 10, 12, generator=torch.Generator().manual_seed(0), **options)
    return x.contiguous(memory_format=form).requires_grad_()


@pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")
def test_winograds_kernels_want_the_channels_innermost_where_they_are_taken():
    for count, stride, form in ((2, 1, LAST), (1, 1, FIRST), (4, 2, FIRST), (8, 2, LAST)):  # 16 or 4 tiles each
        x = torch.rand(count, 3, 16, 16)
        assert laid_out(x.contiguous(memory_format=LAST), WIDE, stride, winograd=True).is_contiguous(memory_format=form)


@pytest.mark.parametrize("before", [LAST, FIRST])
@pytest.mark.parametrize(("width", "after"), [(NARROW, LAST), (WIDE, FIRST)])
def test_values_stay_and_the_gradient_comes_back_in_the_layout_before(before, width, after):
    x = images(before)
    out = laid_out(x, width, 1, winograd=False)
    assert torch.equal(out, x) and out.is_contiguous(memory_format=after)
    upstream = torch.rand_like(out)
    (grad,) = torch.autograd.grad(out, x, upstream)
    assert torch.equal(grad, upstream) and grad.is_contiguous(memory_format=before)


def test_what_the_rule_was_not_measured_for_is_left_alone():
    for x in (images(dtype=torch.float64), images().bfloat16(), torch.empty(4, 3, 10, 12, device="meta")):
        assert laid_out(x, NARROW, 1, winograd=False) is x


def test_torch_func_and_saved_traces_go_through(tmp_path):
    x, conv = images().detach(), torch.nn.Conv2d(3, 4, 3).requires_grad_(False)

    def convolved(x):
        return conv(laid_out(x, NARROW, 1, winograd=False))

    torch.testing.assert_close(torch.func.vmap(convolved)(x[None])[0], conv(x))
    grad = torch.func.grad(lambda x: convolved(x).pow(2).sum())(x)
    torch.testing.assert_close(grad, torch.func.grad(lambda x: conv(x).pow(2).sum())(x))
    torch.jit.save(torch.jit.trace(convolved, x), str(tmp_path / "trace.pt"))
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "trace.pt"))(x), conv(x))


def test_a_second_derivative_goes_through():
    x = images()
    (grad,) = torch.autograd.grad(laid_out(x, NARROW, 1, winograd=False).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * x)


@pytest.mark.parametrize(("depth", "stem", "channels"), [(18, "cifar", 3), (18, "cifar", 1), (50, "imagenet", 3)])
def test_a_resnet_with_and_without_the_rule_is_one_function(depth, stem, channels):
    """Against float64, which the rule leaves alone: features, and gradients of weights and pixels."""
    options = {"in_channels": channels, "mean": (0.4,) * channels, "std": (0.3,) * channels, "stem": stem}
    x = torch.rand(3, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, dtype in (("rule", torch.float32), ("none", torch.float32), ("exact", torch.float64)):
        encoder = ResNet(depth, bn=BatchNormConfig(), **options)
        initialise(encoder, seed=2)
        encoder.use_winograd(False)
        encoder.to(dtype).eval().by_rule = name == "rule"
        layouts = []
        for stage in (encoder.layer1, encoder.layer4):
            stage[0].register_forward_pre_hook(lambda _, inputs, seen=layouts: seen.append(inputs[0]))
        point = x.to(dtype, copy=True).requires_grad_()
        features = encoder(point, "clean")
        features.square().sum().backward()
        tensors = [features.detach(), point.grad, *(weight.grad for weight in encoder.parameters())]
        found[name] = [tensor.double() for tensor in tensors]
        innermost = [feature_map.is_contiguous(memory_format=LAST) for feature_map in layouts]
        assert innermost == [name == "rule", False]
    for rule, exact in zip(found["rule"], found["exact"], strict=True):
        assert (rule - exact).norm() <= 1e-5 * exact.norm()
    assert any(not torch.equal(rule, none) for rule, none in zip(found["rule"], found["none"], strict=True))
