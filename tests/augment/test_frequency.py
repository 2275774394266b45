import cmath
import math

import pytest
import torch

from clead.augment import high_pass
from clead.errors import UserError


def noise(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(image, radius):
    """The inverse of the Fourier sum over the frequencies that are kept, by loops."""
    height, width = len(image), len(image[0])
    kept = []
    for a in range(height):
        for b in range(width):
            u, v = (a if a < (height + 1) // 2 else a - height), (b if b < (width + 1) // 2 else b - width)
            if math.sqrt(u * u + v * v) >= radius:
                kept.append((u, v))
    out = [[0j] * width for _ in range(height)]
    for u, v in kept:
        wave = [
            [cmath.exp(2j * math.pi * (u * y / height + v * x / width)) for x in range(width)] for y in range(height)
        ]
        weight = sum(image[y][x] * wave[y][x].conjugate() for y in range(height) for x in range(width))
        for y in range(height):
            for x in range(width):
                out[y][x] += weight * wave[y][x] / (height * width)
    return torch.tensor([[value.real for value in row] for row in out], dtype=torch.float64)


@pytest.mark.parametrize("shape, radius", [((6, 6), 2.0), ((5, 7), 1.5), ((8, 4), 3.0), ((6, 6), 0.0)])
def test_it_is_the_fourier_sum_over_the_high_frequencies(shape, radius):
    images = noise(2, 3, *shape)
    expected = torch.stack([torch.stack([by_definition(c.tolist(), radius) for c in image]) for image in images])
    torch.testing.assert_close(high_pass(images, radius), expected, rtol=0, atol=1e-12)


def test_waves_below_the_radius_vanish_and_others_stay():
    x = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
    slow, fast = (torch.cos(waves * x).expand(1, 1, 32, 32) for waves in (7, 8))
    torch.testing.assert_close(high_pass(0.5 + slow + fast, 8.0), fast, rtol=0, atol=1e-12)


def test_a_radius_beyond_the_highest_frequency_is_one_sentence():
    assert high_pass(noise(1, 1, 8, 8), math.hypot(4, 4)).abs().max() > 0
    with pytest.raises(UserError, match="at most 5.657, the highest frequency of 8 x 8 images, got 8"):
        high_pass(noise(1, 1, 8, 8), 8.0)


def test_an_image_does_not_depend_on_its_batch():
    images = noise(7, 3, 32, 32).float()
    together = high_pass(images, 8.0)
    assert torch.equal(together, torch.cat([high_pass(image[None], 8.0) for image in images]))
