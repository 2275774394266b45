"""PackedConv3x3: the numbers of conv3x3 from weights packed once, taken over in place, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

from clead_kernels import _native, conv3x3
from clead_kernels.convolution import PackedConv3x3, ops
from tests.kernels.convolution_cases import direct, operands, with_gradients

pytestmark = [pytest.mark.kernels, pytest.mark.skipif(not _native.available(), reason="no native kernels")]
SHAPES = ((5, 16, 32, 7, 6), (1, 80, 48, 1, 9), (3, 64, 144, 4, 4))


def gradient(function, x, grad):
    x = x.detach().requires_grad_()
    out = function(x)
    return out.detach(), *torch.autograd.grad(out, x, grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution(shape, dtype):
    x, weight, bias, grad = operands(shape, dtype)
    bound = 1e-12 if dtype == torch.float64 else 3e-6
    for shift in (bias, torch.stack([bias, bias], 1)[:, 1], None):
        packed = PackedConv3x3(weight, shift)
        truth = gradient(
            lambda x, b=shift: direct(x, weight.double(), b if b is None else b.double()), x.double(), grad
        )
        for layout in (torch.contiguous_format, torch.channels_last):
            found = gradient(packed, x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout))
            for mine, true in zip(found, truth, strict=True):
                assert mine.dtype == dtype and mine.is_contiguous(memory_format=torch.channels_last)
                assert (mine.double() - true).norm() <= bound * true.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_has_the_bits_of_conv3x3(shape):
    x, weight, bias, grad = operands(shape, torch.float32)
    fresh = with_gradients(lambda x, w, b: conv3x3(x, w, b, impl="native"), x, weight, bias, grad)[:2]
    assert all(map(torch.equal, gradient(PackedConv3x3(weight, bias), x, grad), fresh))


def test_new_weights_come_to_the_old_addresses():
    x, weight, bias, grad = operands(SHAPES[0])
    _, other, another, _ = operands(SHAPES[0], seed=1)
    packed = PackedConv3x3(weight, bias)
    held = (packed._packed, packed._turned, packed._bias)
    before = [t.data_ptr() for t in held]
    compiled = torch.compile(lambda x: packed(x), fullgraph=True, backend="aot_eager")
    compiled(x)
    packed.load(other.contiguous(memory_format=torch.channels_last).requires_grad_(), another.requires_grad_())
    assert [t.data_ptr() for t in held] == before and not any(t.requires_grad for t in held)
    expected = gradient(PackedConv3x3(other, another), x, grad)
    assert all(map(torch.equal, gradient(packed, x, grad), expected))
    assert torch.equal(compiled(x), expected[0])


def test_a_weight_that_changes_later_changes_nothing():
    x, weight, bias, _ = operands(SHAPES[0])
    packed = PackedConv3x3(weight, bias)
    before = packed(x)
    weight.fill_(math.nan), bias.fill_(math.nan)
    assert torch.equal(packed(x), before)


def test_derivatives_of_any_order():
    x, weight, bias, _ = operands((1, 16, 16, 2, 3))
    packed = PackedConv3x3(weight, bias)
    assert torch.autograd.gradcheck(packed, x.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(packed, x, fast_mode=True)
    assert packed(x[:0]).shape == (0, 16, 2, 3)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_operator_and_transforms():
    x, weight, bias, _ = operands(SHAPES[0])
    packed = PackedConv3x3(weight, bias)
    opcheck(ops.packed_op, (x.clone().requires_grad_(), packed._packed, packed._turned, packed._bias, 32))
    torch.testing.assert_close(torch.func.vmap(lambda one: packed(one[None])[0])(x), packed(x))
    with pytest.raises(NotImplementedError, match="forward-mode tangent"):
        torch.func.jvp(packed, (x,), (x,))


def test_what_it_refuses():
    x, weight, bias, _ = operands(SHAPES[0])
    packed, bare = PackedConv3x3(weight, bias), PackedConv3x3(weight)
    for call, error, message in (
        (lambda: packed.load(weight[:16], bias[:16]), ValueError, r"must be \[32, 16, 3, 3\].*got \[16, 16, 3, 3\]"),
        (lambda: packed.load(weight), ValueError, "with a bias always, got .* without one"),
        (lambda: bare.load(weight, bias), ValueError, "with a bias never, got .* with one"),
        (
            lambda: packed.load(weight.float(), bias.float()),
            TypeError,
            "weight and the packed one must have the same dtype",
        ),
        (lambda: packed.load(weight, bias[:1]), ValueError, r"bias must be \[32\]"),
        (lambda: packed(x[:, :8]), ValueError, r"x must be \[B, 16, H, W\] for this weight"),
        (lambda: packed(x.float()), TypeError, "x and weight must have the same dtype, got float32 and float64"),
        (lambda: PackedConv3x3(weight[:, :8]), NotImplementedError, "cannot run conv3x3 .*channels=any"),
        (lambda: PackedConv3x3(weight.bfloat16()), NotImplementedError, "cannot run conv3x3 on cpu, bfloat16"),
        (
            lambda: PackedConv3x3(weight[0]),
            ValueError,
            r"\[K, C, 3, 3\], K and C above 0, got \[16, 3, 3\]",
        ),
        (lambda: PackedConv3x3(weight, bias.float()), TypeError, "must have the same dtype"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_new_weights_between_forward_and_backward_are_noticed():
    weight = torch.randn(16, 16, 3, 3)
    packed, x = PackedConv3x3(weight), torch.randn(2, 16, 8, 8, requires_grad=True)
    out = packed(x)
    packed.load(2 * weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    with torch.inference_mode():
        PackedConv3x3(weight).load(weight)
