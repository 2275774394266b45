import math

import pytest
import torch

from clead.augment import high_pass


def wave(height, width, down, right, phase=0.3):
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64) / width
    return torch.cos(2 * math.pi * (down * y + right * x) + phase)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (9, 7), (8, 12)])
def test_waves_pass_from_the_radius_on(height, width):
    for down in range(height // 2):
        for right in range(width // 2):
            image = wave(height, width, down, right).expand(1, 2, -1, -1)
            passes = math.hypot(down, right) >= 3
            torch.testing.assert_close(high_pass(image, 3), image if passes else torch.zeros_like(image))


def test_it_is_linear_and_keeps_the_dtype():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 1, 8, 8, generator=generator)
    out = high_pass(a + 2 * b, 2)
    assert out.dtype == torch.float32 and out.shape == a.shape
    torch.testing.assert_close(out, high_pass(a, 2) + 2 * high_pass(b, 2), rtol=0, atol=1e-6)
    assert out.mean((2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(high_pass(a, 0), a)
