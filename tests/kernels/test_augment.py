"""Augmentation: against loops in float64, kornia, and between implementations; views, bytes, refusals, tracing."""

from __future__ import annotations

import math

import pytest
import torch

import clead_kernels
from clead_kernels import _native, augment
from clead_kernels.augment.steps import STEPS
from tests.kernels.augment_cases import ORDERS, loop, noise, steps_of

pytestmark = pytest.mark.kernels
IMPLS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(not _native.available(), reason="no native kernels")),
]
native_only = pytest.mark.skipif(not _native.available(), reason="no native kernels")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [(8, 8), (7, 11)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_pixel_is_what_the_definition_says(order, size, impl):
    images, steps = noise(3, 3, *size), steps_of(ORDERS[order], 6, *size)
    truth = loop(images, steps)
    # The contrast's mean is counted in steps of 2**-24.
    torch.testing.assert_close(augment(images, steps, impl=impl), truth, rtol=0, atol=1e-7)
    found = augment(images.float(), steps, impl=impl)
    assert found.dtype == torch.float32 and found.is_contiguous()
    # A place in the image passes through the units of grid_sample's grid: 2**-24 of the width.
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5)


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 32), (33, 17), (1, 5)])
@pytest.mark.parametrize("order", ORDERS)
def test_native_agrees_with_the_reference_to_rounding(order, size, dtype):
    images = (noise(8, 3, *size) * 255).to(dtype) if dtype == torch.uint8 else noise(8, 3, *size, dtype=dtype)
    steps = steps_of(ORDERS[order], 24, *size)
    found, expected = (augment(images, steps, impl=impl) for impl in ("native", "reference"))
    # The same bits, but where torch's compiler fuses other products than ours in the interpolation.
    unit = {torch.float64: 1e-14, torch.bfloat16: 2**-8}.get(dtype, 3e-6)
    torch.testing.assert_close(found, expected, rtol=0, atol=unit)
    if not {"resized_crop", "affine", "blur"} & set(ORDERS[order]):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("isa", ["baseline", pytest.param("avx2", marks=pytest.mark.slow)])
@native_only
def test_every_instruction_set_agrees_with_the_reference(printed_on, isa):
    code = """
import torch
from augment_cases import ORDERS, noise, steps_of
from clead_kernels import augment
for names in ORDERS.values():
    for dtype, unit in ((torch.float32, 3e-6), (torch.float64, 1e-14)):
        images, steps = noise(4, 3, 9, 13, dtype=dtype), steps_of(names, 8, 9, 13)
        found, expected = (augment(images, steps, impl=impl) for impl in ("native", "reference"))
        torch.testing.assert_close(found, expected, rtol=0, atol=unit)
print("agrees")
"""
    assert printed_on(isa, code) == "agrees\n"


def test_geometry_agrees_with_kornia():
    transform = pytest.importorskip("kornia.geometry.transform")
    images, count = noise(5, 3, 12, 12), 5
    right, down, degrees = 4 * noise(3, count, seed=3) - 2
    degrees, scale = 90 * degrees, 0.7 + 0.6 * noise(count, seed=4)
    centre = torch.full((count, 2), 5.5, dtype=torch.float64)
    matrix = transform.get_affine_matrix2d(
        torch.stack([right, down], 1), centre, scale[:, None].expand(-1, 2), -degrees
    )
    expected = transform.warp_affine(images, matrix[:, :2], (12, 12), align_corners=True)
    found = augment(images, [("affine", torch.stack([right, down, degrees, scale]))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(12, 12), (64, 48)])
def test_blur_agrees_with_kornia(size):
    filters = pytest.importorskip("kornia.filters")
    images, sigma = noise(3, 3, *size), torch.tensor([0.1, 0.7, 2.0]).double()
    window = 2 * max(1, min(size) // 20) + 1
    expected = filters.gaussian_blur2d(images, window, sigma[:, None].expand(-1, 2), border_type="reflect")
    torch.testing.assert_close(augment(images, [("blur", sigma[None])]), expected, rtol=0, atol=1e-12)


def test_views_are_the_batch_again_and_again():
    images, steps = noise(3, 3, 8, 8), steps_of(ORDERS["box, colours"], 9, 8, 8)
    together = augment(images, steps)
    for view in range(3):
        columns = slice(3 * view, 3 * view + 3)
        alone = augment(images, [(name, numbers[:, columns]) for name, numbers in steps])
        assert torch.equal(together[columns], alone)


@pytest.mark.parametrize("impl", IMPLS)
def test_bytes_are_parts_of_their_largest_value(impl):
    images = torch.tensor([0, 4, 16], dtype=torch.uint8).view(1, 1, 1, 3)
    out = augment(images, [("flip", torch.ones(1, 1).double())], max_value=16, impl=impl)
    assert out.dtype == torch.float32 and out.flatten().tolist() == [1, 0.25, 0]
    half = augment(images, [("flip", torch.zeros(1, 1).double())], dtype=torch.bfloat16, impl=impl)
    assert torch.equal(half.float(), (images / 255).bfloat16().float())


@pytest.mark.parametrize("impl", IMPLS)
def test_strides_empty_batches_and_clipping(impl):
    steps = steps_of(("crop", "brightness"), 4, 6, 5)
    images = noise(4, 3, 6, 5)
    expected = augment(images, steps, impl=impl)
    for other in (images.contiguous(memory_format=torch.channels_last), images.repeat(1, 2, 1, 1)[:, 3:]):
        assert torch.equal(augment(other, steps, impl=impl), expected)
    empty = [(name, numbers[:, :0]) for name, numbers in steps]
    assert augment(images[:0], empty, impl=impl).shape == (0, 3, 6, 5)
    still = [("flip", torch.zeros(1, 4).double())]
    assert torch.equal(augment(3 * images, still, clip=False, impl=impl), 3 * images)
    assert torch.equal(augment(3 * images, still, impl=impl), (3 * images).clamp(0, 1))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_no_number_is_not_made_one(order, impl):
    images, steps = torch.full((4, 3, 6, 6), math.nan), steps_of(ORDERS[order], 4, 6, 6)
    for name, numbers in steps:
        if name == "affine":
            numbers[:2], numbers[3] = 0, 2
        if name == "crop":
            numbers[:] = 1
    assert augment(images, steps, impl=impl)[..., 2:4, 2:4].isnan().all()


@native_only
def test_threads_do_not_change_the_bits():
    images, steps = noise(64, 3, 32, 32, dtype=torch.float32), steps_of(ORDERS["colours, box"], 128, 32, 32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(augment(images, steps, impl="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck_and_compile(impl):
    images, steps = noise(2, 3, 6, 6, dtype=torch.float32), steps_of(ORDERS["box, colours"], 4, 6, 6)
    codes = [list(STEPS).index(name) for name, _ in steps]
    numbers = torch.cat([numbers for _, numbers in steps])
    torch.library.opcheck(torch.ops.clead.augment.default, (images, numbers, codes, 255.0, True, torch.float32, impl))
    compiled = torch.compile(lambda x: augment(x, steps, impl=impl), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), augment(images, steps, impl=impl))


FLIP = ("flip", torch.zeros(1, 2).double())


@pytest.mark.parametrize(
    ("images", "steps", "message"),
    [
        (noise(2, 3, 4), [FLIP], r"images must have shape \[B, C, H, W\], got \[2, 3, 4\]"),
        (noise(2, 3, 4, 4).long(), [FLIP], "images must be uint8, float64, .* got torch.int64"),
        (noise(2, 3, 4, 4).requires_grad_(), [FLIP], "images require grad, and augment has none"),
        (noise(2, 3, 4, 4), [], "steps must be a list of one"),
        (noise(2, 3, 4, 4), [("flop", FLIP[1])], "the name in steps must be one of 'resized_crop', .* got 'flop'"),
        (noise(3, 3, 4, 4), [FLIP], "steps must have a multiple of 3 columns, one for each result, got 2"),
        (noise(2, 3, 4, 4), [("crop", FLIP[1])], r"give crop float64 \[2, 2\] \(top, left\), got .* \[1, 2\]"),
        (noise(2, 3, 4, 4), [("flip", torch.zeros(1, 2))], r"float64 \[1, 2\] \(whether\), got torch.float32"),
        (noise(2, 3, 4, 4), [FLIP, ("flip", torch.zeros(1, 4).double())], r"\[1, 2\] \(whether\), got .* \[1, 4\]"),
        (noise(2, 1, 4, 4), [("grayscale", FLIP[1])], "images must have 3 channels for grayscale, got 1"),
        (noise(2, 3, 4, 4), [("brightness", FLIP[1] * math.nan)], "steps must give brightness finite numbers, got nan"),
        (noise(2, 3, 4, 4), [("blur", FLIP[1] - 1)], "give blur a sigma of at least 0, got -1"),
        (noise(2, 3, 4, 4), [("affine", torch.zeros(4, 2).double())], "give affine a scale above 0, got 0.0"),
        (
            noise(2, 3, 4, 4),
            [("resized_crop", torch.full((4, 2), 3.0).double())],
            "boxes inside 4 x 4 images",
        ),
    ],
)
def test_what_does_not_fit_is_named(images, steps, message):
    with pytest.raises((ValueError, TypeError), match=message):
        augment(images, steps)


def test_dtypes_and_numbers_that_do_not_fit_are_named():
    images = noise(2, 3, 4, 4)
    with pytest.raises(TypeError, match="float64 for float64 images alone, got torch.float32"):
        augment(images, [FLIP], dtype=torch.float32)
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype, .* got torch.int8"):
        augment(images.float(), [FLIP], dtype=torch.int8)
    with pytest.raises(ValueError, match="max_value must be above 0, got 0"):
        augment(images, [FLIP], max_value=0)
    with pytest.raises(TypeError, match="clip must be True or False"):
        augment(images, [FLIP], clip=1)


def test_wild_parameters_read_nothing_outside_the_image():
    """Values are checked on a CPU, so the kernel is called below the front door."""
    wild = torch.tensor([[math.nan, math.inf, -1e30, 1e30, 7.5, 0.0, -3.0]], dtype=torch.float64)
    images = noise(7, 3, 5, 5)
    for code, (name, needed) in enumerate(STEPS.items()):
        numbers = wild.expand(len(needed), 7)
        for impl in ["reference", "native"] if _native.available() and name != "crop" else ["native"]:
            if impl == "native" and not _native.available():
                continue
            out = torch.ops.clead.augment.default(images, numbers, [code], 255.0, True, torch.float64, impl)
            assert out.shape == images.shape


def test_explain_names_what_runs():
    text = clead_kernels.explain("augment")
    assert text.startswith(f"augment on cpu float32: {'native' if _native.available() else 'reference'}")
    assert "order one geometry, colours before or after it" in text
