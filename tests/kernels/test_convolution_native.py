"""conv3x3 in C++: the numerical bar, instruction sets, threads, what is no number, and no memory but the operands'."""

from __future__ import annotations

import math

import pytest
import torch

from clead_kernels import _native, conv3x3
from clead_kernels.convolution import native
from tests.kernels.convolution_cases import SHAPES, assert_close, direct, operands, ours, with_gradients, worst_errors

pytestmark = [pytest.mark.kernels, pytest.mark.skipif(not _native.available(), reason="no native kernels")]
CL = torch.channels_last


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_the_convolution_in_float64(shape):
    given = operands(shape)
    assert_close(with_gradients(ours(), *given), with_gradients(direct, *given))
    x, weight, _, _ = given
    assert_close([conv3x3(x, weight, impl="native")], [direct(x, weight, None)])


@pytest.mark.parametrize("shape", [(8, 64, 64, 8, 8), (4, 128, 64, 13, 6), (600, 16, 16, 4, 4), (4, 512, 256, 4, 4)])
def test_rounding_is_a_few_times_that_of_a_direct_sum(shape):
    """The bar of every kernel here, with 6 in the place of 1.5: the price of a quarter of the multiplications."""
    unit, squares = 2**-24, torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(5):
        given = operands(shape, torch.float32, seed)
        truth = with_gradients(direct, *(t.double() for t in given))
        for at, function in enumerate((ours(), direct)):
            for part, (found, true) in enumerate(zip(with_gradients(function, *given), truth, strict=True)):
                off = found.double() - true
                squares[at, part] += (off.norm() / true.norm()) ** 2 / 5
                if at == 0:
                    assert off.abs().max() <= 64 * unit * true.abs().max()
    mine, theirs = squares.sqrt()
    assert (mine <= (6 * theirs).clamp(min=8 * unit)).all(), (mine / unit, theirs / unit)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_computes_it(printed_on, isa):
    code = """
import sys
sys.path.insert(0, sys.path[0] + "/../..")
import torch
from clead_kernels import build_info
from tests.kernels.convolution_cases import assert_close, SHAPES, worst_errors
wide, single = worst_errors(torch.float64), worst_errors(torch.float32)
assert max(wide) < 1e-14 and max(single) < 3e-6, (wide, single)
print(build_info()["isa"])
"""
    assert printed_on(isa, code) == f"{isa}\n"


def test_float32_is_single_precision_for_every_shape():
    assert max(worst_errors(torch.float32)) < 3e-6


@pytest.mark.parametrize("shape", [(20, 16, 16, 32, 32), (64, 64, 48, 4, 4), (3, 160, 112, 9, 9), (1, 16, 16, 9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_the_bits(shape, dtype):
    given, before = operands(shape, dtype), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(with_gradients(ours(), *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mine, first) for other in found[1:] for mine, first in zip(other, found[0], strict=True))


def test_the_batch_does_not_change_the_bits_of_an_image():
    x, weight, bias, grad = operands((70, 16, 80, 9, 6), torch.float32)
    out, by_x, _, _ = with_gradients(ours(), x, weight, bias, grad)
    for some in (slice(1), slice(11, 37)):
        alone, by_some, _, _ = with_gradients(ours(), x[some], weight, bias, grad[some])
        assert torch.equal(alone, out[some]) and torch.equal(by_some, by_x[some])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_near(value):
    x, weight, bias, _ = operands((2, 16, 16, 12, 12))
    clean = conv3x3(x, weight, bias, impl="native")
    x[1, 3, 5, 6] = value
    found = conv3x3(x, weight, bias, impl="native")
    assert not found[1, :, 4:7, 5:8].isfinite().any()
    # The pixel is in the middle of this tile, and of no other one's border.
    found[1, :, 4:8, 4:8] = clean[1, :, 4:8, 4:8]
    assert torch.equal(found, clean)


def guarded(shape, dtype, fill):
    """[B, C, H, W], channels innermost, in the middle of memory that holds ``fill``; and this memory."""
    count = math.prod(shape)
    memory = torch.full((count + 2048,), fill, dtype=dtype)
    batch, channels, height, width = shape
    return memory[1024 : 1024 + count].view(batch, height, width, channels).permute(0, 3, 1, 2), memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 16, 16, 5, 7), (1, 48, 80, 3, 9), (2, 112, 16, 13, 1), (70, 16, 144, 4, 4)])
def test_nothing_outside_operands_is_read_into_results_or_written(shape, dtype):
    batch, inputs, outputs, height, width = shape
    x, weight, bias, grad = operands(shape, dtype)
    by_x, by_out = (batch, inputs, height, width), (batch, outputs, height, width)
    (inside, _), (upstream, _) = guarded(by_x, dtype, math.nan), guarded(by_out, dtype, math.nan)
    inside.copy_(x), upstream.copy_(grad)
    kernel, _ = guarded((outputs, inputs, 3, 3), dtype, math.nan)
    kernel.copy_(weight)
    results = []
    for values, turned, shift, like in ((inside, False, bias, by_out), (upstream, True, None, by_x)):
        packed = native.room(kernel, turned)
        memory = packed.new_full((packed.numel() + 128,), 7.0)
        middle = memory[64:-64]
        native.pack(kernel, turned, middle)
        assert (memory[:64] == 7).all() and (memory[-64:] == 7).all() and middle.isfinite().all()
        out, memory = guarded(like, dtype, 7.0)
        torch.ops.clead.conv3x3_packed_.default(values, middle, shift, out)
        results.append((out, memory))
    for form in (True, False):
        if form:
            by_weight, memory = guarded((outputs, inputs, 3, 3), dtype, 7.0)
        else:
            memory = inside.new_full((weight.numel() + 2048,), 7.0)
            by_weight = memory[1024:-1024].view(weight.shape)
        torch.ops.clead.conv3x3_weight_gradient_.default(inside, upstream, by_weight)
        results.append((by_weight, memory))
    assert all((memory[:1024] == 7).all() and (memory[-1024:] == 7).all() for _, memory in results)
    truth = with_gradients(direct, x.double(), weight.double(), bias.double(), grad.double())
    assert_close(
        [part.double() for part, _ in results], [*truth[:3], truth[2]], 1e-12 if dtype == torch.float64 else 3e-6
    )


def test_memory_that_is_shared_is_not_written():
    x, weight, _, _ = operands((2, 16, 16, 4, 4))
    x, packed = x.contiguous(memory_format=CL), native.room(weight, False)
    native.pack(weight, False, packed)
    convolve, correlate = torch.ops.clead.conv3x3_packed_.default, torch.ops.clead.conv3x3_weight_gradient_.default
    for call in (
        lambda: convolve(x, packed, None, x),
        lambda: convolve(x, packed, None, x[:1].clone().expand(x.shape)),
        lambda: correlate(x, x, weight[:1].clone().expand(weight.shape)),
        lambda: native.pack(weight, False, packed[:1].expand(packed.shape)),
    ):
        with pytest.raises(RuntimeError, match=r"memory|contiguous"):
            call()


def test_no_channels_are_refused_by_the_ops_themselves():
    x, none = torch.rand(2, 4, 4, 16).permute(0, 3, 1, 2), torch.rand(2, 4, 4, 0).permute(0, 3, 1, 2)
    for arguments in ((x, torch.empty(0), None, none), (none, torch.empty(36 * 16), None, x)):
        with pytest.raises(RuntimeError, match="channels, a multiple of 16, innermost"):
            torch.ops.clead.conv3x3_packed_(*arguments)
    with pytest.raises(RuntimeError, match="multiples of 16 channels"):
        torch.ops.clead.conv3x3_pack_(torch.empty(0, 16, 3, 3), False, torch.empty(0))
