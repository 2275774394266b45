import numpy as np
import pytest
import torch

from clead.data import load, stl10
from clead.errors import UserError


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The folder, and its images [N, 3, 96, 96] as one looks at them."""
    monkeypatch.setattr(stl10, "IMAGES", {"train": 20, "test": 10, "unlabeled": 30})
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    generator = np.random.default_rng(0)
    images = {}
    for name, count in stl10.IMAGES.items():
        images[name] = generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        # The official files run down the columns first.
        (folder / f"{name}_X.bin").write_bytes(images[name].swapaxes(2, 3).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes((np.arange(count, dtype=np.uint8) % 10 + 1).tobytes())
    return folder, images


def test_images_stand_upright_and_labels_start_at_0(official):
    folder, images = official
    splits = load("stl10", folder.parent)
    assert (len(splits.train), len(splits.val), len(splits.test), splits.image_size) == (18, 2, 10, (96, 96))
    np.testing.assert_array_equal(splits.test.images, images["test"])
    assert splits.test.labels.tolist() == list(range(10))
    assert splits.mean == pytest.approx((images["train"] / 255).mean((0, 2, 3)).tolist(), rel=1e-12)


def test_the_unlabelled_images_are_a_training_split(official):
    folder, images = official
    splits = load("stl10_unlabeled", folder)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (30, 0, 10)
    assert splits.train.labels.unique().tolist() == [-1]
    chosen = torch.tensor([29, 0, 7])
    np.testing.assert_array_equal(splits.train.batch(chosen), images["unlabeled"][chosen] / np.float32(255))
    assert splits.mean == load("stl10", folder).mean


def test_they_come_at_another_size(official):
    folder, _ = official
    assert load("stl10", folder, image_size=32).test.images.shape == (10, 3, 32, 32)


def test_what_is_wrong_is_named(official, tmp_path):
    folder, _ = official
    with pytest.raises(UserError, match=r"no STL-10 files .*--data-dir.*--download"):
        load("stl10", tmp_path / "nowhere")
    (folder / "test_y.bin").write_bytes(bytes([1, 0] + [1] * 8))
    with pytest.raises(UserError, match=r"test_y.bin: expected labels 1 to 10, found 0 at image 1"):
        load("stl10", folder)
    (folder / "train_X.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train_X.bin: expected 552,960 bytes, found 5"):
        load("stl10", folder)
    (folder / "unlabeled_X.bin").unlink()
    with pytest.raises(UserError, match=r"no STL-10 files"):
        load("stl10_unlabeled", folder)
