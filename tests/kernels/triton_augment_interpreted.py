"""Numerics of the augmentation kernels, interpreted: ``test_contrastive_triton.py`` runs this in a child process."""

from __future__ import annotations

import pytest
import torch

from clead_kernels import augment
from clead_kernels.augment import triton
from tests.kernels.augment_cases import OF_TRITON, ORDERS, loop, noise, steps_of

FAST = (("box, colours", 16), ("colours, box", 64), ("mirrored first", 64))
REST = [pytest.param(order, 64, marks=pytest.mark.slow) for order in OF_TRITON if (order, 64) not in FAST]


@pytest.mark.parametrize(("order", "block"), [*FAST, *REST])
def test_every_pixel_is_what_the_definition_says(monkeypatch, order, block):
    monkeypatch.setattr(triton, "SHAPE", triton.SHAPE._replace(block_n=block))
    images, steps = noise(3, 3, 7, 5), steps_of(ORDERS[order], 3, 7, 5)
    found = augment(images.float(), steps, impl="triton")
    torch.testing.assert_close(found.double(), loop(images.float(), steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_steps_without_colour_take_any_channels(channels):
    images, steps = noise(2, channels, 6, 6), steps_of(ORDERS["turned"], 2, 6, 6)
    found = augment(images.float(), steps, impl="triton")
    torch.testing.assert_close(found.double(), loop(images, steps), rtol=0, atol=1e-5)


def test_bytes_in_and_halves_out():
    images, steps = (noise(2, 3, 6, 6) * 256).to(torch.uint8), steps_of(ORDERS["colours, box"], 4, 6, 6)
    truth = loop(images.double() / 200, steps)
    torch.testing.assert_close(augment(images, steps, max_value=200, impl="triton").double(), truth, rtol=0, atol=1e-5)
    half = augment(images, steps, max_value=200, dtype=torch.bfloat16, impl="triton")
    # The interpreter rounds to bfloat16 towards zero, chips to nearest.
    torch.testing.assert_close(half.double(), truth, rtol=0, atol=2**-8)
    narrow = noise(2, 3, 6, 6).half()
    found = augment(narrow, steps_of(("crop", "flip"), 2, 6, 6), impl="triton")
    assert torch.equal(found, augment(narrow, steps_of(("crop", "flip"), 2, 6, 6), impl="reference"))


def test_what_is_no_number_is_not_made_one():
    steps = steps_of(ORDERS["colours, box"], 2, 4, 4)
    assert augment(torch.full((2, 3, 4, 4), float("nan")), steps, impl="triton").isnan().all()


def test_one_pixel_that_is_no_number_leaves_the_others_as_they_are():
    images = noise(2, 3, 4, 4).float()
    images[0, :, 1, 2] = float("nan")
    steps = [("jitter", torch.tensor([[1, 1.1, 0.5, 0.8, 0.1]] * 2).double().T.contiguous())]
    found, expected = (augment(images, steps, impl=impl) for impl in ("triton", "reference"))
    assert found.isnan().sum() == expected.isnan().sum() == 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_an_order_that_it_cannot_follow_is_refused():
    for names in (("crop", "affine"), ("jitter", "crop", "grayscale"), ("grayscale", "jitter"), ("flip", "flip")):
        with pytest.raises(NotImplementedError, match="order=any; augment has .*order one geometry, colours before"):
            augment(noise(2, 3, 6, 6).float(), steps_of(names, 2, 6, 6), impl="triton")
