import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from clead.data import cifar10, load, load_cifar10
from clead.data.base import channel_statistics
from clead.errors import UserError


def all_images(rows) -> np.ndarray:
    return np.concatenate([batch[:, 1:].reshape(-1, 3, 32, 32) for batch in rows.values()])


def refused(data_dir) -> str:
    """The whole message, which is one line."""
    with pytest.raises(UserError) as caught:
        load_cifar10(data_dir, val_size=10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("parent", [True, False])
def test_binary_form_is_read_in_order(binary_dir, rows, parent):
    splits = load_cifar10(binary_dir.parent if parent else binary_dir, val_size=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (40, 0, 8)
    np.testing.assert_array_equal(np.concatenate([splits.train.images, splits.test.images]), all_images(rows))
    assert splits.test.labels.tolist() == rows["test_batch"][:, 0].tolist()
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 3, (32, 32))


def test_validation_is_a_stratified_part_of_train(binary_dir, rows):
    splits = load_cifar10(binary_dir, val_size=10)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (30, 10, 8)
    assert torch.bincount(splits.val.labels, minlength=10).tolist() == [1] * 10
    pixels = {image.tobytes() for image in np.concatenate([splits.train.images, splits.val.images])}
    assert pixels == {image.tobytes() for image in all_images(rows)[:40]}


def test_val_size_outside_the_training_set_is_refused(binary_dir):
    with pytest.raises(UserError, match=r"val_size must be in \[0, 40\), got 40"):
        load_cifar10(binary_dir, val_size=40)


def test_no_files_says_where_it_looked_and_what_to_do(tmp_path, rows):
    message = refused(tmp_path)
    assert str(tmp_path / "cifar-10-batches-bin") in message and str(tmp_path / "cifar-10-batches-py") in message
    assert "--data-dir" in message and "--download" in message


def test_a_missing_file_is_named(binary_dir):
    (binary_dir / "data_batch_3.bin").unlink()
    assert refused(binary_dir) == f"{binary_dir}/data_batch_3.bin: expected a file, found none"


def test_a_truncated_file_is_named(binary_dir):
    path = binary_dir / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(binary_dir) == f"{path}: expected 24,584 bytes, found 24,583"


def test_label_10_is_named(binary_dir):
    path = binary_dir / "test_batch.bin"
    data = bytearray(path.read_bytes())
    data[2 * 3073] = 10
    path.write_bytes(data)
    assert refused(binary_dir) == f"{path}: expected labels 0 to 9, found 10 at image 2"


def test_an_altered_pixel_is_found_by_checksum(binary_dir, monkeypatch):
    path = binary_dir / "data_batch_2.bin"
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "SHA256", {"data_batch_2": right})
    load_cifar10(binary_dir, val_size=10)
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)
    message = refused(binary_dir)
    assert message.startswith(f"{path}: altered")
    assert right in message and hashlib.sha256(data).hexdigest() in message


def test_the_more_complete_form_is_taken(binary_dir, rows, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"stray")
    assert len(load_cifar10(tmp_path, val_size=10).test) == 8


@pytest.mark.skipif("CLEAD_CIFAR10_DIR" not in os.environ, reason="set CLEAD_CIFAR10_DIR to a folder with CIFAR-10")
def test_the_real_files():
    data_dir = Path(os.environ["CLEAD_CIFAR10_DIR"])
    splits = load("cifar10", data_dir)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(splits.val.labels).tolist() == [500] * 10
    mean, std = channel_statistics(torch.cat([splits.train.images, splits.val.images]), 255)
    np.testing.assert_allclose(splits.mean + splits.std, mean + std, rtol=0, atol=5e-9)
    held_out = hashlib.sha256(splits.val.images.numpy().tobytes()).hexdigest()
    assert held_out == "ed5e5b32a463caba073a20004326fc30439f89df10a296357ebc734ed408040a"
