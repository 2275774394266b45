"""conv3x3: against loops and PyTorch's own in float64; layouts, threads, instruction sets, tracing, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import clead_kernels
from clead_kernels import _native, conv3x3
from clead_kernels.convolution import ops
from clead_kernels.convolution.api import served
from tests.kernels.convolution_cases import assert_close, direct, loop, operands, ours, with_gradients

pytestmark = pytest.mark.kernels
native_only = pytest.mark.skipif(not _native.available(), reason="no native kernels")
IMPLS = ["reference", pytest.param("native", marks=native_only)]
CL = torch.channels_last
CASE = (5, 16, 32, 7, 6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(1, 16, 16, 1, 1), (2, 16, 16, 3, 5), (1, 32, 16, 6, 4), (1, 16, 48, 5, 2)])
def test_every_pixel_and_gradient_is_what_the_definition_says(shape, impl):
    given = operands(shape)
    assert_close(with_gradients(ours(impl), *given), with_gradients(loop, *given))


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
        assert_close(with_gradients(ours(impl), *given), expected, 1e-14)
    assert_close(with_gradients(ours(impl), x, weight, torch.stack([bias, bias], 1)[:, 1], grad), expected, 1e-14)


@pytest.mark.parametrize("impl", IMPLS)
def test_operands_of_repeated_memory(impl):
    x, weight, bias, grad = operands(CASE)
    for given in (
        (x[:1].expand(x.shape), weight, bias, grad),
        (x[:, :, :1, :1].expand(x.shape), weight, bias, grad[:1, :1].expand(grad.shape)),
        (x, weight[:1, :, :1].expand(weight.shape), bias[:1].expand(bias.shape), grad[0, 0, 0, 0].expand(grad.shape)),
    ):
        assert_close(with_gradients(ours(impl), *given), with_gradients(ours(impl), *(t.clone() for t in given)), 1e-14)


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

    assert_close(
        torch.func.grad(loss, argnums=(0, 1, 2))(x, weight, bias), with_gradients(direct, x, weight, bias, grad)[1:]
    )
    per_image = torch.func.vmap(
        torch.func.grad(lambda w, one, g: (function(one[None], w, bias)[0] * g).sum()), in_dims=(None, 0, 0)
    )(weight, x, grad)
    assert_close([per_image.sum(0)], [with_gradients(direct, x, weight, bias, grad)[2]])
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
        (
            torch.ones(2, 4, 4, 4),
            torch.ones(4, 4, 5, 5),
            None,
            ValueError,
            r"\[K, C, 3, 3\], K and C above 0, got",
        ),
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
        (torch.ones(2, 0, 4, 4), torch.ones(16, 0, 3, 3), None, ValueError, "K and C above 0, got .16, 0, 3, 3."),
        (torch.ones(2, 16, 4, 4), torch.ones(0, 16, 3, 3), None, ValueError, "K and C above 0, got .0, 16, 3, 3."),
    ],
)
def test_what_does_not_fit_is_named(x, weight, bias, error, message):
    with pytest.raises(error, match=message):
        conv3x3(x, weight, bias)


@native_only
def test_auto_takes_native_where_tiles_are_many_and_full():
    def taken(batch, inputs, outputs, size, dtype=torch.float32):
        return served((batch, inputs, size, size), outputs, torch.device("cpu"), dtype)

    assert taken(16, 64, 64, 4) and taken(1, 64, 64, 16) and taken(16, 128, 128, 4, torch.float64)
    assert not taken(15, 64, 64, 4)  # few tiles
    assert not taken(63, 512, 512, 4) and taken(64, 512, 512, 4)  # few for so many channels
    assert not taken(64, 64, 64, 5) and taken(64, 64, 64, 6)  # 25 of 64 and 36 of 64 places in use
    assert not taken(64, 3, 64, 32) and not taken(64, 64, 64, 32, torch.bfloat16)
    text = clead_kernels.explain("conv3x3")
    assert text.startswith("conv3x3 on cpu float32: native") and "channels multiples of 16; tiles many" in text
