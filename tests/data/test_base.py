import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from clead.data import DATASETS, Dataset, Splits, find_dataset, load
from clead.data.base import channel_statistics, stratified_split
from clead.errors import UserError


def digest(parts) -> str:
    return hashlib.sha256(b"".join(part.numpy().astype("<i8").tobytes() for part in parts)).hexdigest()


def test_batch_divides_exactly_by_the_value_that_means_one():
    images = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    dataset = Dataset("ramp", images, torch.zeros(256, dtype=torch.int64), ("only",), 255)
    expected = (np.arange(256) / 255).astype(np.float32)
    batch = dataset.batch(torch.arange(256))
    assert batch.dtype == torch.float32 and batch.shape == (256, 1, 1, 1)
    np.testing.assert_array_equal(batch.flatten().numpy(), expected)


def test_select_and_batch_follow_the_order_of_the_indices():
    dataset = Dataset("x", torch.tensor([0, 4, 8, 16], dtype=torch.uint8).reshape(4, 1, 1, 1), torch.arange(4), (), 16)
    assert dataset.select(torch.tensor([3, 1])).labels.tolist() == [3, 1]
    assert dataset.batch(torch.tensor([3, 1])).flatten().tolist() == [1.0, 0.25]


def test_channel_statistics_are_numpys():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 17, (50, 2, 4, 4), dtype=np.uint8))
    pixels = images.numpy().astype(np.float64) / 16
    mean, std = channel_statistics(images, 16)
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_split_covers_every_index_once_with_equal_shares():
    labels = torch.arange(3).repeat_interleave(torch.tensor([60, 30, 10]))
    parts = stratified_split(labels, (70, 20, 10))
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    for part, share in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert part.tolist() == sorted(part.tolist())
        counts = torch.bincount(labels[part], minlength=3).tolist()
        assert all(abs(count - share * size) <= 1 for count, size in zip(counts, (60, 30, 10), strict=True))


def test_split_is_random_within_a_class_and_pinned():
    parts = stratified_split(torch.zeros(12, dtype=torch.int64), (8, 4))
    assert parts[1].tolist() == [0, 6, 7, 11]


def test_split_refuses_sizes_that_do_not_add_up():
    with pytest.raises(ValueError, match="sum to 3"):
        stratified_split(torch.zeros(3, dtype=torch.int64), (1, 1))


def test_digits_are_scikit_learns_pixels_split_1197_100_500():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target)
    parts = stratified_split(labels, (1197, 100, 500))
    splits = load("digits")
    for dataset, indices in zip((splits.train, splits.val, splits.test), parts, strict=True):
        np.testing.assert_array_equal(dataset.images[:, 0].numpy(), bunch.images[indices.numpy()])
        np.testing.assert_array_equal(dataset.labels.numpy(), bunch.target[indices.numpy()])
        shares = torch.bincount(labels).double() * len(indices) / 1797
        assert (torch.bincount(dataset.labels, minlength=10) - shares).abs().max() <= 1
    assert [len(part) for part in parts] == [1197, 100, 500]
    assert digest(parts) == "8039c0809bd033970e017cb88152eaf682bd82c9cb77f3e143810c8a5c8b1cda"
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 1, (8, 8))
    pixels = splits.train.images.double() / 16
    np.testing.assert_allclose(splits.mean + splits.std, [pixels.mean(), pixels.std(correction=0)], rtol=1e-12)
    assert splits.train.batch(torch.arange(1197)).max() == 1


def test_every_data_set_is_reached_by_name():
    assert {"digits", "cifar10", "cifar100", "stl10", "tiny_imagenet", "folder"} <= set(DATASETS)
    with pytest.raises(UserError, match="unknown data set 'cifar-10'; the nearest is 'cifar10'"):
        find_dataset("cifar-10")


def test_resizing_keeps_means_exactly_and_constant_images_for_ever():
    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4) * 10
    both = torch.cat([images, torch.full_like(images, 7)])
    dataset = Dataset("two", both, torch.tensor([0, 1]), ("a", "b"), 150)
    smaller = dataset.resize((2, 2)).images
    # With antialiasing a triangle of twice the pixel's width weighs 4 columns (3, 3, 1 of 7 in the upper left corner).
    line = [(3 * a + 3 * b + c) / 7 for a, b, c in ((0, 1, 2), (3, 2, 1))]
    expected = [[10 * (4 * row + column) for column in line] for row in line]
    assert smaller.dtype == torch.uint8 and smaller[0, 0].tolist() == [[round(v) for v in row] for row in expected]
    assert bool((dataset.resize((9, 5)).images[1] == 7).all()) and dataset.resize((9, 5)).images.shape == (2, 1, 9, 5)


def test_holding_out_cuts_the_training_split_and_leaves_the_test_split():
    splits = load("digits")
    cut = splits.hold_out(0.1)
    assert (len(cut.train), len(cut.val), len(cut.test)) == (1077, 120, 500)
    rows = {image.numpy().tobytes() for image in splits.train.images}
    parts = [{image.numpy().tobytes() for image in part.images} for part in (cut.train, cut.val)]
    assert parts[0] | parts[1] == rows and torch.equal(cut.test.images, splits.test.images)
    counts = torch.bincount(cut.val.labels)
    assert int(counts.min()) >= 11 and int(counts.max()) <= 13  # equal shares of every class
    again = splits.hold_out(0.1)
    assert torch.equal(again.val.images, cut.val.images)


def mapped(path, count=30):
    """Images in a file, and the same in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 5), dtype=np.uint8)
    np.save(path, pixels)
    images = torch.from_numpy(np.lib.format.open_memmap(path, mode="c"))
    there = Dataset("x", images, torch.arange(count) % 3, ("a", "b", "c"), 255, mapped=True)
    return there, replace(there, images=torch.from_numpy(pixels), mapped=False)


def test_images_of_a_file_are_the_same_in_every_place(tmp_path):
    there, memory = mapped(tmp_path / "images.npy")
    assert there.remote and not memory.remote
    for indices in (torch.tensor([7, 3, 20]), torch.arange(30)):
        for one in (there.part(indices), there.select(indices), there.part(indices).to("cpu", "device")):
            assert len(one) == len(indices) and torch.equal(one.labels, memory.labels[indices])
            assert torch.equal(one.batch(torch.arange(len(one))), memory.batch(indices))
            assert torch.equal(one.part(torch.tensor([2, 0])).batch(torch.tensor([1])), memory.batch(indices[:1]))
            assert torch.equal(one.resize((3, 3)).images, memory.select(indices).resize((3, 3)).images)


def test_what_is_held_out_of_a_file_stays_in_it(tmp_path):
    there, memory = mapped(tmp_path / "images.npy")
    splits, expected = (Splits.published(one, one).hold_out(0.2) for one in (there, memory))
    assert len(splits.train) == 24 and len(splits.val) == 6
    for found, wanted in ((splits.train, expected.train), (splits.val, expected.val)):
        assert found.remote and found.images.data_ptr() == there.images.data_ptr()
        order = torch.arange(len(found)).flip(0)
        assert torch.equal(found.batch(order), wanted.batch(order)) and torch.equal(found.labels, wanted.labels)


def test_residence_is_what_was_asked_for(tmp_path):
    there, _ = mapped(tmp_path / "images.npy")
    for residence in ("auto", "host"):
        assert there.to("cpu", residence).images.data_ptr() == there.images.data_ptr()
        assert there.to("cpu", residence).remote
    inside = there.to("cpu", "device")
    assert inside.images.data_ptr() != there.images.data_ptr() and not inside.remote
    assert inside.images.dtype == torch.uint8 and torch.equal(inside.images, there.images)
    assert inside.to("cpu", "device").images is inside.images


@pytest.mark.gpu
def test_residence_on_a_gpu(tmp_path, monkeypatch):
    there, _ = mapped(tmp_path / "images.npy")
    everything, batch = there.images.nbytes, there.batch(torch.arange(30))
    for free, residence, device in (
        *((3 * everything, "auto", "cuda"), (everything, "auto", "cpu"), (everything, "device", "cuda")),
        *((3 * everything, "host", "cpu"),),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        moved = there.to("cuda", residence)
        assert moved.images.device.type == device and moved.remote == (device == "cpu")
        assert moved.images.dtype == torch.uint8 and moved.labels.is_cuda
        assert torch.equal(moved.batch(torch.arange(30, device="cuda")).cpu(), batch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (everything - 1, everything))
    with pytest.raises(UserError, match="residence must be auto or host for x: its images take 1,800 bytes"):
        there.to("cuda", "device")
