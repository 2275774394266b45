import colorsys

import numpy as np
import pytest
import torch

from clead.augment import ColorJitter, GaussianBlur, RandomBrightness, RandomGrayscale
from clead_kernels.augment.reference import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

FACTORS = torch.tensor([0.0, 0.2, 1.0, 1.3, 1.8], dtype=torch.float64)
TURNS = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.2], dtype=torch.float64)


def images(dtype=torch.float64):
    """Five images; the first rows hold the corners of the cube, greys and ties of two channels."""
    out = torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out[:, :, 0] = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)]).T
    out[:, :, 1, :4] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    out[:, 1, 1, 4:] = out[:, 0, 1, 4:]
    return out.to(dtype)


def luma(image) -> np.ndarray:
    return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def blend(image, other, factor) -> np.ndarray:
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


def turn_hue(image, turn) -> np.ndarray:
    out = np.empty_like(image)
    for row, column in np.ndindex(image.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column])
        out[:, row, column] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    return out


@pytest.mark.parametrize(
    "adjust, values, expected",
    [
        (adjust_brightness, FACTORS, lambda image, factor: blend(image, 0, factor)),
        (adjust_contrast, FACTORS, lambda image, factor: blend(image, luma(image).mean(), factor)),
        (adjust_saturation, FACTORS, lambda image, factor: blend(image, luma(image), factor)),
        (adjust_hue, TURNS, turn_hue),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adjustments_follow_their_equations(adjust, values, expected, dtype):
    found = adjust(images(dtype), values)
    assert found.dtype == dtype
    truth = np.stack([expected(image, float(value)) for image, value in zip(images().numpy(), values, strict=True)])
    # The contrast's mean is summed in steps of 2**-24.
    np.testing.assert_allclose(found.double(), truth, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize(
    "adjust, name, values, units",
    [
        (adjust_brightness, "adjust_brightness_accumulative", FACTORS, 1),
        (adjust_contrast, "adjust_contrast_with_mean_subtraction", FACTORS, 1),
        (adjust_saturation, "adjust_saturation_with_gray_subtraction", FACTORS, 1),
        (adjust_hue, "adjust_hue", TURNS, 2 * torch.pi),
    ],
)
def test_adjustments_agree_with_kornia(adjust, name, values, units):
    enhance = pytest.importorskip("kornia.enhance")
    expected = getattr(enhance, name)(images(torch.float32), (values * units).float())
    torch.testing.assert_close(adjust(images(torch.float32), values), expected, rtol=0, atol=2e-6)


def test_a_factor_of_one_changes_nothing_exactly():
    one = torch.ones(5, dtype=torch.float64)
    for adjust in (adjust_brightness, adjust_contrast, adjust_saturation):
        torch.testing.assert_close(adjust(images(torch.float32), one), images(torch.float32), rtol=0, atol=0)


def test_hue_of_grey_is_grey():
    grey = torch.full((1, 3, 2, 2), 0.3)
    torch.testing.assert_close(adjust_hue(grey, torch.tensor([0.37])), grey, rtol=0, atol=0)


def test_brightness_factors_span_their_range():
    u = torch.tensor([[0.0, 0.5, 0.75]])
    out = RandomBrightness(0.1)(torch.full((3, 1, 1, 1), 0.5), u)
    np.testing.assert_allclose(out.flatten(), [0.45, 0.5, 0.525], rtol=1e-6)


def test_jitter_applies_its_parts_in_order_and_with_its_probability():
    u = torch.tensor([[0.79, 0.8], [0.1, 0.1], [0.2, 0.2], [0.9, 0.9], [0.3, 0.3]], dtype=torch.float64)
    pair = images()[3:]
    out = ColorJitter(0.8, 0.4, 1.5, 0.2, p=0.8)(pair, u)
    image = pair[0].numpy()
    image = blend(image, 0, 0.2 + 0.1 * 1.6)
    image = blend(image, luma(image).mean(), 0.6 + 0.2 * 0.8)
    image = blend(image, luma(image), 0.9 * 2.5)  # a strength above 1 starts from a factor of 0
    image = turn_hue(image, -0.2 + 0.3 * 0.4)
    np.testing.assert_allclose(out[0], image, rtol=0, atol=1e-6)
    assert torch.equal(out[1], pair[1])


def test_grayscale_gives_the_luma_in_all_channels():
    out = RandomGrayscale(0.2)(images(), torch.tensor([[0.0, 0.19, 0.2, 0.5, 0.9]]))
    for i in (0, 1):
        np.testing.assert_allclose(out[i], np.broadcast_to(luma(images()[i].numpy()), (3, 6, 8)), rtol=1e-12)
    assert torch.equal(out[2:], images()[2:])


def test_blur_keeps_the_mean_of_a_dot_and_happens_with_its_probability():
    dots = torch.zeros(3, 1, 9, 9)
    dots[:, 0, 4, 4] = 1
    u = torch.tensor([[0.29, 0.29, 0.3], [0.0, 0.5, 0.9]])
    out = GaussianBlur(p=0.3, sigma=(0.5, 1.5))(dots, u)
    for i, sigma in ((0, 0.5), (1, 1.0)):
        bell = np.exp(-np.array([1, 0, 1]) / (2 * sigma**2))
        np.testing.assert_allclose(out[i, 0, 3:6, 3:6], np.outer(bell, bell) / bell.sum() ** 2, rtol=1e-6)
        assert out[i].sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(out[2], dots[2])
