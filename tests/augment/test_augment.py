from dataclasses import dataclass

import pytest
import torch

from clead.augment import AUGMENTATIONS, Augmentation, ColorJitter, RandomBrightness, RandomGrayscale, find_augmentation
from clead.errors import UserError
from clead.rng import Rng

COLOR = {"acl", "instance", "rocl", "simclr", "simclr_imagenet", "supcon"}


def noise(count, channels=3, size=32, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def stream(count, *, seed=0, step=0, device="cpu"):
    return Rng.create(seed, "augment", torch.arange(count, device=device), step)


def test_the_table_holds_the_documented_names():
    assert set(AUGMENTATIONS) == {"none", "digits", "crop_flip", "rrc_flip", *COLOR}
    assert {name for name, it in AUGMENTATIONS.items() if any(part.color for part in it.transforms)} == COLOR
    assert all(find_augmentation(name) == it for name, it in AUGMENTATIONS.items())


@pytest.mark.parametrize("channels, size", [(3, 32), (1, 8), (3, 33)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_shape_range_and_input_are_kept(name, channels, size):
    if channels == 1 and name in COLOR:
        return
    images = noise(16, channels, size).round()  # zeros and ones: the ends of the range
    before = images.clone()
    out = AUGMENTATIONS[name](images, stream(16))
    assert out.shape == images.shape and out.dtype == images.dtype
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(out, images) == (name == "none")


@pytest.mark.parametrize("channels, size", [(3, 32), (1, 8), (3, 33)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_does_not_depend_on_its_batch(name, channels, size):
    if channels == 1 and name in COLOR:
        return
    augment, images, rng = AUGMENTATIONS[name], noise(16, channels, size), stream(16, step=3)
    together = augment(images, rng)
    assert torch.equal(together, augment(images, rng))
    one_by_one = torch.cat([augment(images[i : i + 1], rng[i : i + 1]) for i in range(16)])
    assert torch.equal(together, one_by_one)
    thirds = torch.cat([augment(images[i : i + 5], rng[i : i + 5]) for i in range(0, 16, 5)])
    assert torch.equal(together, thirds)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(together[order], augment(images[order], rng[order]))


def test_an_image_that_is_summed_by_several_threads_does_not_depend_on_its_batch():
    # Above 32,768 values torch shares a single sum among threads, and its last bit changes.
    augment, images, rng = Augmentation("jitter", (ColorJitter(0, 0.8, 0, 0, p=1),)), noise(8, 3, 200), stream(8)
    together = augment(images, rng)
    assert torch.equal(together, torch.cat([augment(images[i : i + 1], rng[i : i + 1]) for i in range(8)]))


def test_parameters_do_not_depend_on_the_batch_for_any_of_many_samples():
    augment, images = AUGMENTATIONS["digits"], noise(1, 1, 8).expand(1000, 1, 8, 8)
    together = augment(images, stream(1000))
    for size in (1, 7, 8, 250):
        parts = [augment(images[i : i + size], stream(1000)[i : i + size]) for i in range(0, 1000, size)]
        assert torch.equal(together, torch.cat(parts))


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"none"}))
def test_views_steps_seeds_and_samples_differ(name):
    image = noise(1).expand(8, 3, 32, 32)
    augment, rng = AUGMENTATIONS[name], stream(8)
    first = augment(image, rng)
    for other in (rng.view(1), rng.at(1), stream(8, seed=1)):
        assert not torch.equal(first, augment(image, other))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("name, rate", [("crop_flip", 0.5), ("rrc_flip", 0.5), ("simclr", 0.5)])
def test_half_of_the_images_are_flipped(name, rate):
    # A ramp from left to right keeps its direction under crops and colours, and turns under a flip.
    images = torch.linspace(0.2, 0.8, 16).expand(1500, 3, 16, 16)
    out = AUGMENTATIONS[name](images, stream(1500)).mean((1, 2))
    flipped = out[:, 9] < out[:, 6]
    undecided = out[:, 9] == out[:, 6]
    assert undecided.double().mean() < 0.02
    assert flipped[~undecided].double().mean() == pytest.approx(rate, abs=0.052)


@dataclass(frozen=True)
class Recorder:
    """Keeps the numbers it was given."""

    seen: list
    draws: int
    color: bool = False

    def __call__(self, images, u):
        self.seen.append(u)
        return images


def test_transforms_take_consecutive_draws_so_an_appended_one_moves_none():
    seen = []
    rng = stream(3)
    Augmentation("a", (Recorder(seen, 2), Recorder(seen, 3)))(noise(3), rng)
    Augmentation("b", (Recorder(seen, 2), Recorder(seen, 3), Recorder(seen, 6)))(noise(3), rng)
    expected = rng.uniform(11).double().T
    for u, rows in zip(seen, (slice(0, 2), slice(2, 5), slice(0, 2), slice(2, 5), slice(5, 11)), strict=True):
        assert torch.equal(u, expected[rows])


@pytest.mark.parametrize("name", sorted(COLOR))
def test_colour_augmentation_of_grey_images_is_refused(name):
    message = f"augmentation '{name}' changes colours: expected images with 3 channels, got 1"
    with pytest.raises(UserError, match=message):
        AUGMENTATIONS[name](noise(2, 1, 8), stream(2))
    with pytest.raises(UserError, match=message):
        AUGMENTATIONS[name].check_channels(1)
    AUGMENTATIONS["digits"].check_channels(1)


def test_unknown_names_point_to_the_nearest():
    with pytest.raises(UserError, match="unknown augmentation 'simclear'; the nearest is 'simclr'"):
        find_augmentation("simclear")


def test_wrong_inputs_are_named():
    augment = AUGMENTATIONS["crop_flip"]
    with pytest.raises(TypeError, match="got torch.uint8"):
        augment(noise(2).to(torch.uint8), stream(2))
    with pytest.raises(TypeError, match=r"\[3, 32, 32\]"):
        augment(noise(2)[0], stream(2))
    with pytest.raises(ValueError, match="rng must name 2 samples, one per image, got 3"):
        augment(noise(2), stream(3))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_made_at_once_are_the_views_made_one_by_one(name):
    augment, images, rng = AUGMENTATIONS[name], noise(5), stream(5)
    views = [rng.view(view) for view in range(3)]
    together = augment(images, views[0].cat(*views[1:]))
    assert torch.equal(together, torch.cat([augment(images, view) for view in views]))


def test_transforms_of_ones_own_stand_among_others():
    images, seen = noise(4), []
    mixed = Augmentation("mixed", (Recorder(seen, 1), RandomBrightness(0.5), Recorder(seen, 2), RandomBrightness(0.5)))
    rng = stream(4)
    out = mixed(images, rng.cat(rng.view(1)))
    assert [u.shape for u in seen] == [(1, 8), (2, 8)]
    u = torch.cat([rng.uniform(5), rng.view(1).uniform(5)])[:, :, None, None].double()
    expected = (images.repeat(2, 1, 1, 1) * (0.5 + u[:, 1:2])).clamp(0, 1) * (0.5 + u[:, 4:])
    torch.testing.assert_close(out.double(), expected.clamp(0, 1), rtol=0, atol=1e-6)


def test_an_empty_batch_stays_empty():
    for augment in AUGMENTATIONS.values():
        assert augment(noise(0), stream(0)).shape == (0, 3, 32, 32)


def test_strength_zero_parts_leave_images_alone():
    augment = Augmentation("still", (RandomBrightness(0.0), RandomGrayscale(0.0)))
    assert torch.equal(augment(noise(4), stream(4)), noise(4))


@pytest.mark.gpu
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_gpu_gives_the_cpus_images(name):
    images = noise(64)
    found = AUGMENTATIONS[name](images.cuda(), stream(64, device="cuda"))
    # The same draws and boxes; interpolation may fuse its products.
    torch.testing.assert_close(found.cpu(), AUGMENTATIONS[name](images, stream(64)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"none"}))
def test_a_faded_augmentation_keeps_its_draws_and_ends_in_no_change_but_flips(name):
    augment, images = AUGMENTATIONS[name], noise(16)
    assert augment.faded(1.0) == augment
    assert [part.draws for part in augment.faded(0.3).transforms] == [part.draws for part in augment.transforms]
    out = augment.faded(0.0)(images, stream(16))
    for image, result in zip(images, out, strict=True):
        assert min((result - image).abs().max(), (result - image.flip(-1)).abs().max()) < 1e-5
    distance = [(augment.faded(s)(images, stream(16)) - out).square().mean() for s in (0.25, 1.0)]
    assert distance[0] < distance[1]


def test_acl_at_half_strength_by_hand():
    crop, flip, jitter, gray = AUGMENTATIONS["acl"].faded(0.5).transforms
    assert crop.scale == (0.55, 1.0) and flip.p == 0.5 and gray.p == 0.1
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (0.2, 0.2, 0.2, 0.05, 0.4)


def test_the_implementation_is_the_one_asked_for():
    images, rng = noise(4), stream(4)
    for name, impl in (("simclr", "reference"), ("digits", "auto")):
        assert find_augmentation(name, impl).impl == impl
    assert find_augmentation("simclr", "native").impl == "auto"  # there is no CUDA C++
    assert find_augmentation("simclr", "reference").faded(0.5).impl == "reference"
    with pytest.raises(NotImplementedError, match="impl='triton' cannot run augment on cpu"):
        find_augmentation("simclr_imagenet", "triton")(images, rng)
