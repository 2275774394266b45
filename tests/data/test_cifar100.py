import pickle

import numpy as np
import pytest

from clead.data import cifar100, load
from clead.errors import UserError


@pytest.fixture
def rows(monkeypatch):
    """The binary rows of both files: coarse label, fine label, pixels."""
    monkeypatch.setattr(cifar100, "IMAGES", {"train": 200, "test": 100})
    generator = np.random.default_rng(0)
    found = {}
    for name, count in cifar100.IMAGES.items():
        found[name] = generator.integers(0, 256, (count, cifar100.ROW), dtype=np.uint8)
        found[name][:, 0], found[name][:, 1] = np.arange(count) % 20, np.arange(count) % 100
    return found


@pytest.fixture
def binary(tmp_path, rows):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, batch in rows.items():
        (folder / f"{name}.bin").write_bytes(batch.tobytes())
    return folder


def test_there_are_a_hundred_classes_in_order():
    assert len(cifar100.CLASSES) == 100 and list(cifar100.CLASSES) == sorted(cifar100.CLASSES)


@pytest.mark.parametrize("parent", [True, False])
def test_fine_labels_and_pixels_of_the_binary_form(binary, rows, parent):
    splits = load("cifar100", binary.parent if parent else binary)
    assert (len(splits.train), len(splits.val), len(splits.test), splits.num_classes) == (180, 20, 100, 100)
    np.testing.assert_array_equal(splits.test.images.flatten(1), rows["test"][:, 2:])
    assert splits.test.labels.tolist() == rows["test"][:, 1].tolist()
    pixels = {image.numpy().tobytes() for part in (splits.train, splits.val) for image in part.images}
    assert pixels == {row[2:].tobytes() for row in rows["train"]}


def test_statistics_are_those_of_all_published_training_images(binary, rows):
    splits = load("cifar100", binary)
    pixels = rows["train"][:, 2:].reshape(-1, 3, 1024).astype(np.float64) / 255
    assert splits.mean == pytest.approx(pixels.mean((0, 2)).tolist(), rel=1e-12)
    assert splits.std == pytest.approx(pixels.std((0, 2)).tolist(), rel=1e-12)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_hold_the_same(binary, rows, tmp_path, protocol):
    folder = tmp_path / "elsewhere" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, batch in rows.items():
        fields = {
            "filenames": [f"image_of_some_class_s_{i:06}.png" for i in range(len(batch))],
            "fine_labels": batch[:, 1].tolist(),
            "coarse_labels": batch[:, 0].tolist(),
            "data": batch[:, 2:],
        }
        (folder / name).write_bytes(pickle.dumps(fields, protocol))
    official, pickled = load("cifar100", binary), load("cifar100", tmp_path / "elsewhere")
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(official, part).images, getattr(pickled, part).images)
        assert getattr(official, part).labels.tolist() == getattr(pickled, part).labels.tolist()


def test_what_is_wrong_is_named(binary, tmp_path):
    with pytest.raises(UserError, match=r"no CIFAR-100 files .*cifar-100-binary.*--data-dir.*--download"):
        load("cifar100", tmp_path / "nowhere")
    path = binary / "test.bin"
    data = bytearray(path.read_bytes())
    data[2 * cifar100.ROW + 1] = 100
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"test.bin: expected labels 0 to 99, found 100 at image 2"):
        load("cifar100", binary)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"test.bin: expected {len(data):,} bytes, found {len(data) - 1:,}"):
        load("cifar100", binary)
