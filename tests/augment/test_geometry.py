import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clead.augment import HorizontalFlip, RandomAffine, RandomCrop, RandomResizedCrop
from clead_kernels.augment.reference import affine, resized_crop

STILL = {"right": 0.0, "down": 0.0, "degrees": 0.0, "scale": 1.0}


def moved(images, **changes):
    values = {name: torch.full((len(images),), value, dtype=torch.float64) for name, value in (STILL | changes).items()}
    return affine(images, **values)


def dot(row, column, size=9):
    image = torch.zeros(1, 1, size, size)
    image[0, 0, row, column] = 1
    return image


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changes, row, column",
    [
        ({"right": 2.0}, 2, 5),
        ({"down": -1.0}, 1, 3),
        ({"degrees": 90.0}, 5, 2),  # 2 up and 1 left of the centre turns to 1 down and 2 left
        ({"degrees": -90.0}, 3, 6),
        ({"degrees": 180.0}, 6, 5),
        ({"degrees": 90.0, "right": 2.0}, 5, 4),  # turned first, then moved
        ({"scale": 2.0}, 0, 2),  # twice as far from the centre
        ({"scale": 2.0, "right": 1.0}, 0, 3),  # magnified first, then moved
    ],
)
def test_affine_moves_a_pixel_to_where_it_should_be(changes, row, column):
    out = moved(dot(2, 3), **changes)[0, 0]
    assert out[row, column] == pytest.approx(1, abs=1e-5)
    assert divmod(int(out.argmax()), 9) == (row, column)
    if "scale" not in changes:
        assert out.sum() == pytest.approx(1, abs=1e-4)


def test_a_fractional_shift_blends_neighbours():
    out = moved(dot(4, 4), right=0.25, down=0.5)[0, 0]
    expected = {(4, 4): 0.375, (4, 5): 0.125, (5, 4): 0.375, (5, 5): 0.125}
    for place, value in expected.items():
        assert out[place] == pytest.approx(value, abs=1e-5)
    assert out.sum() == pytest.approx(1, abs=1e-5)


def test_outside_is_black():
    assert moved(torch.ones(1, 1, 4, 4), right=2.0)[0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("degrees", [7.0, -31.0])
def test_affine_agrees_with_scipy(degrees):
    ndimage = pytest.importorskip("scipy.ndimage")  # comes with scikit-learn
    image = noise(1, 1, 9, 7).double()
    cos, sin = math.cos(math.radians(degrees)) / 1.1, math.sin(math.radians(degrees)) / 1.1
    matrix, centre = np.array([[cos, sin], [-sin, cos]]), np.array([4.0, 3.0])  # on (row, column)
    expected = ndimage.affine_transform(
        np.pad(image[0, 0].numpy(), 4), matrix, centre + 4 - matrix @ (centre + 4 + [0.3, -0.6]), order=1
    )
    found = moved(image, degrees=degrees, scale=1.1, down=0.3, right=-0.6)
    np.testing.assert_allclose(found[0, 0], expected[4:-4, 4:-4], atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_affine_of_no_strength_changes_nothing(size):
    images = noise(2, 3, *size)
    still = RandomAffine(shift=0, rotation=0, scale=(1, 1))(images, noise(4, 2).double())
    torch.testing.assert_close(still, images, rtol=0, atol=1e-6 if size == (7, 5) else 0)


def test_affine_draws_stay_in_their_ranges():
    # One bright pixel far from the border: its centre of mass gives the shift, whatever turn and scale do to it.
    images = dot(4, 4).expand(2000, 1, 9, 9)
    out = RandomAffine(shift=1, rotation=10, scale=(0.9, 1.1))(images, noise(4, 2000).double())
    mass, place = out.sum((1, 2, 3)), torch.arange(9.0) - 4
    for shift in ((out.sum((1, 2)) * place).sum(1) / mass, (out.sum((1, 3)) * place).sum(1) / mass):
        # Turning moves a unit pixel's interpolated centre of mass by a few hundredths.
        assert shift.abs().max() <= 1.06 and shift.max() > 0.9 and shift.min() < -0.9
        assert shift.mean().abs() < 4 / math.sqrt(3 * 2000)


def test_random_crop_is_a_window_of_the_padded_image():
    images, u = noise(40, 2, 6, 5), noise(2, 40, seed=1).double()
    out = RandomCrop(padding=4)(images, u)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    for i in range(40):
        top, left = math.floor(u[0, i] * 9), math.floor(u[1, i] * 9)
        np.testing.assert_array_equal(out[i], padded[i, :, top : top + 6, left : left + 5])


def test_random_crop_reaches_every_offset_equally():
    images = torch.zeros(9000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    out = RandomCrop(padding=4)(images, noise(2, 9000).double())
    counts = out.sum(0)[0]  # one pixel each; 9000 / 81 per place
    assert counts.sum() == 9000
    chi_squared = ((counts - 9000 / 81) ** 2 / (9000 / 81)).sum()
    assert chi_squared < 131  # 80 degrees of freedom, p = 0.0003


def test_flip_mirrors_below_its_probability():
    images = torch.arange(6.0).reshape(2, 1, 1, 3)
    out = HorizontalFlip(p=0.25)(images, torch.tensor([[0.24, 0.25]]))
    assert out.flatten().tolist() == [2, 1, 0, 3, 4, 5]


@pytest.mark.parametrize("box", [(0, 0, 12, 10), (2, 3, 5, 7), (11, 9, 1, 1), (0, 4, 12, 2)])
def test_resized_crop_is_crop_then_interpolate(box):
    images = noise(1, 3, 12, 10).double()
    top, left, height, width = box
    expected = F.interpolate(
        images[..., top : top + height, left : left + width], (12, 10), mode="bilinear", align_corners=False
    )
    found = resized_crop(images, *(torch.tensor([value]) for value in box))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_resized_crop_of_the_whole_image_changes_nothing():
    images = noise(2, 3, 32, 32)
    whole = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))(images, noise(22, 2).double())
    torch.testing.assert_close(whole, images, rtol=0, atol=0)


def boxes_by_hand(u, height, width, scale, ratio):
    """torchvision's loop, fed with the same numbers."""
    for area_draw, aspect_draw in zip(u[:10], u[10:20], strict=True):
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + aspect_draw * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(u[20] * (height - h + 1)), math.floor(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (20, 48), (40, 11)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.9, 1.0), (1.0, 1.0)])
def test_boxes_are_torchvisions(size, scale):
    u = noise(22, 300, seed=3).double()
    found = torch.stack(RandomResizedCrop(scale=scale).boxes(u, *size), dim=1).tolist()
    assert found == [list(boxes_by_hand(u[:, i].tolist(), *size, scale, (3 / 4, 4 / 3))) for i in range(300)]


def test_box_areas_are_uniform_where_all_fit():
    _, _, height, width = RandomResizedCrop(scale=(0.2, 0.5)).boxes(noise(22, 4000).double(), 100, 100)
    area = (height * width).double() / 10_000
    assert area.mean() == pytest.approx(0.35, abs=4 * 0.3 / math.sqrt(12 * 4000))
    assert area.min() > 0.19 and area.max() < 0.51
    assert (width.double() / height).log().mean().abs() < 4 * math.log(16 / 9) / math.sqrt(12 * 4000)
