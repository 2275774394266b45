"""Corruptions against PIL, scipy, colorsys and closed forms; the reader of the official files."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from clead.data import Dataset
from clead.errors import UserError
from clead.protocols.corruptions import CORRUPTIONS, blur, corrupt, corruption_rows, digital, noise, read_official
from clead.protocols.corruptions.draws import Draws
from clead.rng import Rng


def dataset(size=6, channels=3, side=16):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(size, channels, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    labels = torch.arange(size) % 3
    return Dataset("made/test", (images * 255).to(torch.uint8), labels, ("a", "b", "c"), 255)


def draws(size=6):
    return Draws(Rng(5, torch.arange(size)))


@pytest.fixture
def x():
    made = dataset()
    return made.batch(torch.arange(6))


def test_there_are_the_nineteen_types_and_five_severities():
    assert len(CORRUPTIONS) == 19
    assert all(len(it.constants) == 5 for it in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_type_changes_images_more_with_severity_and_ignores_the_batch(name):
    made = dataset()
    clean = made.images.double()
    mild, harsh = corrupt(made, name, 1), corrupt(made, name, 5)
    assert mild.images.dtype == torch.uint8 and mild.images.shape == made.images.shape and mild.max_value == 255
    assert torch.equal(mild.images, corrupt(made, name, 1).images)
    assert torch.equal(mild.images[:2], corrupt(made.select(torch.arange(2)), name, 1).images)
    change = [float((it.images.double() - clean).square().mean()) for it in (mild, harsh)]
    if name == "saturate":  # severities 1 and 2 take colour away, 3 to 5 add some
        change[0] = float((corrupt(made, name, 3).images.double() - clean).square().mean())
    if name in ("elastic_transform", "spatter"):  # first global, then local; water, then mud
        assert min(change) > 0
    else:
        assert 0 < change[0] < change[1]


@pytest.mark.parametrize("side", [8, 32])
def test_gray_images_of_other_sizes_have_eighteen_types(side):
    made = dataset(2, 1, side)
    for name, it in CORRUPTIONS.items():
        if not it.colour:
            assert corrupt(made, name, 5).images.shape == (2, 1, side, side)


def test_noise_has_its_moments():
    x = torch.full((20, 3, 32, 32), 0.5)
    settings = draws(20)
    residual = {
        "gaussian": noise.gaussian_noise(x, 0.1, settings) - x,
        "speckle": noise.speckle_noise(x, 0.2, settings) - x,
        "shot": noise.shot_noise(x, 50, settings) - x,
    }
    for name, sd in (("gaussian", 0.1), ("speckle", 0.1), ("shot", (0.5 / 50) ** 0.5)):
        assert abs(float(residual[name].mean())) < 4 * sd / 60000**0.5
        assert float(residual[name].std()) == pytest.approx(sd, rel=0.02)
    counts = noise.shot_noise(x, 50, settings) * 50
    assert (counts - counts.round()).abs().max() < 1e-4 and counts.min() >= 0
    assert (noise.shot_noise(0 * x, 50, settings) == 0).all()
    salted = noise.impulse_noise(x, 0.07, settings)
    assert float((salted == 0).double().mean()) == pytest.approx(0.035, rel=0.1)
    assert float((salted == 1).double().mean()) == pytest.approx(0.035, rel=0.1)


def test_gaussian_blur_is_scipys(x):
    expected = ndimage.gaussian_filter(x.double().numpy(), (0, 0, 0.8, 0.8), mode="nearest", truncate=4.0)
    ours = blur.gaussian_blur(x.double(), 0.8, draws())
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"])
def test_a_blur_leaves_a_flat_image_alone(name):
    flat = torch.full((6, 3, 16, 16), 0.37)
    for constants in CORRUPTIONS[name].constants:
        torch.testing.assert_close(CORRUPTIONS[name].apply(flat, constants, draws()), flat, rtol=0, atol=1e-5)


def test_a_streak_spreads_a_point_along_its_line():
    point = torch.zeros(1, 1, 15, 15)
    point[0, 0, 7, 7] = 1
    spread = blur.streak(point, 6, 2.0, torch.tensor([0.0]))[0, 0]
    weights = torch.exp(-0.5 * (torch.arange(8.0) / 2) ** 2)
    expected = torch.zeros(15)
    expected[:8] = weights.flip(0) / weights.sum()
    torch.testing.assert_close(spread[7], expected, rtol=0, atol=2e-3)
    assert spread[[6, 8]].abs().max() < 1e-5


def test_glass_takes_every_pixel_from_within_its_reach():
    place = torch.arange(256.0).view(1, 1, 16, 16).expand(6, 1, 16, 16)
    taken = blur.glass_blur(place, (0.0, 1, 1), draws())
    rows, columns = place.long() // 16 - taken.long() // 16, place.long() % 16 - taken.long() % 16
    assert set(rows.flatten().tolist()) == set(columns.flatten().tolist()) == {0, 1}
    assert 0.4 < float(rows.double().mean()) < 0.6 and 0.4 < float(columns.double().mean()) < 0.6


def test_colours_are_colorsys(x):
    brighter, stronger = digital.brightness(x, 0.2, draws()), digital.saturate(x, (2, 0.1), draws())
    for image, bright, strong in ((x[0], brighter[0], stronger[0]), (x[1], brighter[1], stronger[1])):
        for row, column in ((0, 0), (3, 9), (15, 15)):
            h, s, v = colorsys.rgb_to_hsv(*image[:, row, column].double().tolist())
            expected = colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1))
            assert bright[:, row, column].tolist() == pytest.approx(expected, abs=1e-5)
            expected = colorsys.hsv_to_rgb(h, min(2 * s + 0.1, 1), v)
            assert strong[:, row, column].tolist() == pytest.approx(expected, abs=1e-5)
    dark = torch.zeros(1, 3, 2, 2)
    assert (digital.brightness(dark, 0.3, draws(1)) == 0.3).all()
    gray = torch.full((1, 3, 1, 1), 0.5)
    reddish = colorsys.hsv_to_rgb(0, 0.2, 0.5)
    assert digital.saturate(gray, (2.5, 0.2), draws(1)).flatten().tolist() == pytest.approx(reddish)


def test_contrast_by_hand():
    x = torch.tensor([[[[0.2, 0.6]]]])
    assert digital.contrast(x, 0.15, draws(1)).flatten().tolist() == pytest.approx([0.37, 0.43])


def test_jpeg_is_pillows(x):
    ours = digital.jpeg_compression(x, 40, draws())
    buffer = io.BytesIO()
    Image.fromarray((x[2] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=40)
    theirs = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1) / 255
    assert torch.equal(ours[2], theirs)


def test_elastic_without_strength_and_jitter_is_the_image(x):
    same = digital.elastic_transform(x, (0, 0, 0), draws())
    torch.testing.assert_close(same, x, rtol=0, atol=1e-5)


def official(folder, made):
    for name, shift in (("fog", 1), ("snow", 2)):
        parts = [(made.images + shift * severity).permute(0, 2, 3, 1).numpy() for severity in range(1, 6)]
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    np.save(folder / "labels.npy", np.tile(made.labels.numpy(), 5))


def test_official_files_are_read_severity_by_severity(tmp_path):
    made = dataset()
    official(tmp_path, made)
    assert torch.equal(read_official(tmp_path, made, "fog", 3).images, made.images + 3)
    assert torch.equal(read_official(tmp_path, made, "snow", 5).images, made.images + 10)


def test_official_files_that_do_not_fit_are_named(tmp_path):
    made = dataset()
    official(tmp_path, made)
    with pytest.raises(UserError, match=r"frost\.npy: expected a file of CIFAR-10-C, found none"):
        read_official(tmp_path, made, "frost", 1)
    with pytest.raises(UserError, match=r"labels\.npy: expected the labels of made/test, found others"):
        read_official(tmp_path, Dataset("made/test", made.images, made.labels.flip(0), made.classes, 255), "fog", 1)
    np.save(tmp_path / "fog.npy", np.zeros((6, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"fog\.npy: expected integers \[30, 16, 16, 3\], found uint8 \[6, 16, 16, 3\]"):
        read_official(tmp_path, made, "fog", 1)
    (tmp_path / "snow.npy").write_bytes(b"no numpy")
    with pytest.raises(UserError, match=r"snow\.npy: expected a file of numpy"):
        read_official(tmp_path, made, "snow", 1)


def test_imagenet_c_is_read_from_its_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEAD_CACHE", str(tmp_path / "cache"))
    made = dataset()
    order = made.labels.argsort(stable=True)  # images lie class by class, as the folders give them
    made = made.select(order)
    for severity in range(1, 6):
        for index, (image, label) in enumerate(zip(made.images, made.labels.tolist(), strict=True)):
            path = tmp_path / "fog" / str(severity) / made.classes[label] / f"ILSVRC2012_val_{index:08}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image + severity).permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(read_official(tmp_path, made, "fog", 3).images, made.images + 3)
    with pytest.raises(UserError, match=r"expected the 3 images of made/test, found 6 of others"):
        read_official(tmp_path, made.select(torch.arange(3)), "fog", 1)
    with pytest.raises(UserError, match=r"fog/6: expected a folder of ImageNet-C, found none"):
        read_official(tmp_path, made, "fog", 6)


def test_rows_say_where_the_images_come_from(network, tmp_path):
    rows = list(corruption_rows(network, ["fog", "contrast"], [1, 5], None))
    assert [(row["corruption"], row["severity"]) for row in rows[1:]] == [
        ("fog", 1),
        ("fog", 5),
        ("contrast", 1),
        ("contrast", 5),
    ]
    assert all(row["flags"] == ["cifar10c_style"] and row["dataset"] == "made" for row in rows[1:])
    official(tmp_path, network.test)
    clean, fog = corruption_rows(network, ["fog"], [2], tmp_path)
    assert (fog["dataset"], fog["flags"], clean["dataset"]) == ("made-c", [], "made")
    for name, message in (("mist", "unknown corruption 'mist'"), ("saturate", "needs images with three channels")):
        with pytest.raises(UserError, match=message):
            list(corruption_rows(network, [name], [1], None))
