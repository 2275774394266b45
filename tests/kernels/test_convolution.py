"""conv3x3: against loops and PyTorch's own in float64; layouts, threads, instruction sets, tracing, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

import clead_kernels
from clead_kernels import _native, conv3x3
from clead_kernels.convolution import native, ops
from clead_kernels.convolution.api import served
from tests.kernels.convolution_cases import SHAPES, direct, loop, operands, ours, with_gradients, worst_errors

pytestmark = pytest.mark.kernels
native_only = pytest.mark.skipif(not _native.available(), reason="no native kernels")
IMPLS = ["reference", pytest.param("native", marks=native_only)]
CL = torch.channels_last
CASE = (5, 16, 32, 7, 6)


def close(found, expected, bound=1e-12):
    for mine, true in zip(found, expected, strict=True):
        assert mine.shape == true.shape and mine.dtype == true.dtype
        assert (mine - true).norm() <= bound * true.norm()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(1, 16, 16, 1, 1), (2, 16, 16, 3, 5), (1, 32, 16, 6, 4), (1, 16, 48, 5, 2)])
def test_every_pixel_and_gradient_is_what_the_definition_says(shape, impl):
    given = operands(shape)
    close(with_gradients(ours(impl), *given), with_gradients(loop, *given))


@native_only
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_the_convolution_in_float64(shape):
    given = operands(shape)
    close(with_gradients(ours(), *given), with_gradients(direct, *given))
    x, weight, _, _ = given
    close([conv3x3(x, weight, impl="native")], [direct(x, weight, None)])


@native_only
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


@native_only
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_computes_it(printed_on, isa):
    code = """
import sys
sys.path.insert(0, sys.path[0] + "/../..")
import torch
from clead_kernels import build_info
from tests.kernels.convolution_cases import SHAPES, worst_errors
wide, single = worst_errors(torch.float64), worst_errors(torch.float32)
assert max(wide) < 1e-14 and max(single) < 3e-6, (wide, single)
print(build_info()["isa"])
"""
    assert printed_on(isa, code) == f"{isa}\n"


@native_only
def test_float32_is_single_precision_for_every_shape():
    assert max(worst_errors(torch.float32)) < 3e-6


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=CL),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "within": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "within, channels last": lambda t: torch.nn.functional.pad(t.contiguous(memory_format=CL), (1, 2, 3, 1))[
        ..., 3:-1, 1:-2
    ],
    "some channels": lambda t: torch.cat([t, t], 1).contiguous(memory_format=CL)[:, t.shape[1] :],
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "negated": lambda t: torch._neg_view(-t),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_number_depends_on_how_they_lie(layout, impl):
    x, weight, bias, grad = operands(CASE)
    expected, change = with_gradients(ours(impl), x, weight, bias, grad), LAYOUTS[layout]
    for given in ((change(x), weight, bias, grad), (x, change(weight), bias, grad), (x, weight, bias, change(grad))):
        close(with_gradients(ours(impl), *given), expected, 1e-14)
    close(with_gradients(ours(impl), x, weight, torch.stack([bias, bias], 1)[:, 1], grad), expected, 1e-14)


@pytest.mark.parametrize("impl", IMPLS)
def test_operands_of_repeated_memory(impl):
    x, weight, bias, grad = operands(CASE)
    for given in (
        (x[:1].expand(x.shape), weight, bias, grad),
        (x[:, :, :1, :1].expand(x.shape), weight, bias, grad[:1, :1].expand(grad.shape)),
        (x, weight[:1, :, :1].expand(weight.shape), bias[:1].expand(bias.shape), grad[0, 0, 0, 0].expand(grad.shape)),
    ):
        close(with_gradients(ours(impl), *given), with_gradients(ours(impl), *(t.clone() for t in given)), 1e-14)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_batch(impl):
    given = operands((0, 16, 32, 4, 5))
    out, *grads = with_gradients(ours(impl), *given)
    assert out.shape == (0, 32, 4, 5) and [g.shape for g in grads] == [t.shape for t in given[:3]]
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("impl", IMPLS)
def test_results_have_the_channels_innermost_and_gradients_their_parameter_s_layout(impl):
    x, weight, bias, grad = operands(CASE)
    for form in (torch.contiguous_format, CL):
        out, by_x, by_weight, _ = with_gradients(ours(impl), x, weight.contiguous(memory_format=form), bias, grad)
        assert out.is_contiguous(memory_format=CL) and by_x.is_contiguous(memory_format=CL)
        assert by_weight.is_contiguous(memory_format=form)


@native_only
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


@native_only
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_near(value):
    x, weight, bias, _ = operands((2, 16, 16, 12, 12))
    clean = conv3x3(x, weight, bias, impl="native")
    x[1, 3, 5, 6] = value
    found = conv3x3(x, weight, bias, impl="native")
    assert not found[1, :, 4:7, 5:8].isfinite().any()
    found[1, :, 4:8, 4:8] = clean[
        1, :, 4:8, 4:8
    ]  # the pixel is in the middle of this tile, and of no other one's border
    assert torch.equal(found, clean)


def guarded(shape, dtype, fill):
    """[B, C, H, W], channels innermost, in the middle of memory that holds ``fill``; and this memory."""
    count = math.prod(shape)
    memory = torch.full((count + 2048,), fill, dtype=dtype)
    batch, channels, height, width = shape
    return memory[1024 : 1024 + count].view(batch, height, width, channels).permute(0, 3, 1, 2), memory


@native_only
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
    close([part.double() for part, _ in results], [*truth[:3], truth[2]], 1e-12 if dtype == torch.float64 else 3e-6)


@native_only
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


@pytest.mark.parametrize("impl", IMPLS)
def test_derivatives_of_derivatives(impl):
    given = [t.requires_grad_() for t in operands((1, 16, 16, 2, 3))[:3]]
    assert torch.autograd.gradcheck(ours(impl), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours(impl), given, fast_mode=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_only_the_gradients_asked_for(impl):
    x, weight, bias, grad = operands(CASE)
    full = with_gradients(ours(impl), x, weight, bias, grad)[1:]
    for chosen in range(3):
        given = [t.clone().requires_grad_(at == chosen) for at, t in enumerate((x, weight, bias))]
        conv3x3(*given, impl=impl).backward(grad)
        assert torch.equal(given[chosen].grad, full[chosen])
        assert all(t.grad is None for at, t in enumerate(given) if at != chosen)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("impl", IMPLS)
def test_transforms_of_torch_func(impl):
    (x, weight, bias, grad), function = operands((4, 16, 16, 4, 5)), ours(impl)
    torch.testing.assert_close(
        torch.func.vmap(lambda one: function(one[None], weight, bias)[0])(x), function(x, weight, bias)
    )

    def loss(x, weight, bias):
        return (function(x, weight, bias) * grad).sum()

    close(torch.func.grad(loss, argnums=(0, 1, 2))(x, weight, bias), with_gradients(direct, x, weight, bias, grad)[1:])
    per_image = torch.func.vmap(
        torch.func.grad(lambda w, one, g: (function(one[None], w, bias)[0] * g).sum()), in_dims=(None, 0, 0)
    )(weight, x, grad)
    close([per_image.sum(0)], [with_gradients(direct, x, weight, bias, grad)[2]])
    with pytest.raises(NotImplementedError, match="forward-mode tangent"):
        torch.func.jvp(lambda x: function(x, weight, bias), (x,), (x,))


@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck_and_compile(impl):
    x, weight, bias, grad = operands(CASE, torch.float32)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    opcheck(ops.conv_op, (*leaves, impl))
    opcheck(ops.backward_op, (grad, x, weight, impl, [True, False, True]))
    compiled = torch.compile(ours(impl), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (5, 3, 2):
        given = (x[:batch], weight, bias, grad[:batch])
        for mine, eager in zip(with_gradients(compiled, *given), with_gradients(ours(impl), *given), strict=True):
            assert torch.equal(mine, eager)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_takes_tensors_as_they_come(impl):
    given = operands(CASE, torch.float32)
    plain = with_gradients(ours(impl), *given)
    with torch.autocast("cpu", torch.bfloat16):
        cast = with_gradients(ours(impl), *given)
    assert all(torch.equal(mine, other) for mine, other in zip(plain, cast, strict=True))


def test_half_types_have_the_reference_alone():
    x, weight, _, _ = operands((2, 16, 16, 8, 8), torch.bfloat16)
    assert conv3x3(x, weight).dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match=r"cannot run conv3x3 on cpu, bfloat16"):
        conv3x3(x, weight, impl="native")


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "message"),
    [
        (torch.ones(2, 4, 4), torch.ones(4, 4, 3, 3), None, ValueError, r"x must be \[B, 4, H, W\].*got \[2, 4, 4\]"),
        (torch.ones(2, 5, 4, 4), torch.ones(4, 4, 3, 3), None, ValueError, r"x must be \[B, 4, .*got \[2, 5, 4, 4\]"),
        (torch.ones(2, 4, 0, 4), torch.ones(4, 4, 3, 3), None, ValueError, r"H and W above 0, got \[2, 4, 0, 4\]"),
        (torch.ones(2, 4, 4, 4), torch.ones(4, 4, 5, 5), None, ValueError, r"weight must be \[K, C, 3, 3\], got"),
        (
            torch.ones(2, 4, 4, 4),
            torch.ones(4, 4, 3, 3).double(),
            None,
            TypeError,
            "x and weight must have the same dt",
        ),
        (torch.ones(2, 4, 4, 4), torch.ones(4, 4, 3, 3), torch.ones(3), ValueError, r"bias must be \[4\].*got \[3\]"),
        (torch.ones(2, 4, 4, 4).long(), torch.ones(4, 4, 3, 3), None, TypeError, "x must be floating point, got"),
        (torch.ones(2, 4, 4, 4), torch.ones(4, 4, 3, 3, device="meta"), None, ValueError, "must be on the same device"),
    ],
)
def test_what_does_not_fit_is_named(x, weight, bias, error, message):
    with pytest.raises(error, match=message):
        conv3x3(x, weight, bias)


@native_only
def test_auto_takes_native_where_tiles_are_many_and_full():
    def taken(batch, inputs, outputs, size, dtype=torch.float32):
        x, weight = torch.empty(batch, inputs, size, size, dtype=dtype), torch.empty(outputs, inputs, 3, 3, dtype=dtype)
        return served(x, weight)

    assert taken(16, 64, 64, 4) and taken(1, 64, 64, 16) and taken(16, 128, 128, 4, torch.float64)
    assert not taken(15, 64, 64, 4)  # few tiles
    assert not taken(63, 512, 512, 4) and taken(64, 512, 512, 4)  # few for so many channels
    assert not taken(64, 64, 64, 5) and taken(64, 64, 64, 6)  # 25 of 64 and 36 of 64 places in use
    assert not taken(64, 3, 64, 32) and not taken(64, 64, 64, 32, torch.bfloat16)
    text = clead_kernels.explain("conv3x3")
    assert text.startswith("conv3x3 on cpu float32: native") and "channels multiples of 16; tiles many" in text
