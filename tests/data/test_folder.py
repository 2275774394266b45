import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clead.data import decoded, load
from clead.errors import UserError

COLORS = {"ant": (200, 10, 30), "bee": (20, 180, 60), "cat": (0, 40, 220)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(path, color, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, quality=95)


@pytest.fixture
def images(tmp_path):
    """Ten training and two test images per class, each class of one colour."""
    root = tmp_path / "insects"
    for name, color in COLORS.items():
        for index in range(10):
            draw(root / "train" / name / f"{index}.{'png' if index % 2 else 'JPEG'}", color)
        for index in range(2):
            draw(root / "test" / name / "deeper" / f"{index}.bmp", color, size=(17, 64))
    return root


def test_classes_are_folders_and_sizes_are_one(images):
    splits = load("folder", images, image_size=16)
    assert splits.train.classes == ("ant", "bee", "cat")
    assert splits.train.images.shape == (30, 3, 16, 16) and splits.test.images.shape == (6, 3, 16, 16)
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2] and len(splits.val) == 0
    for part, tolerance in ((splits.train, 4), (splits.test, 0)):  # JPEG and PNG; bitmaps
        for label, color in enumerate(COLORS.values()):
            mine = part.images[part.labels == label].numpy().astype(int)
            assert abs(mine - np.array(color).reshape(3, 1, 1)).max() <= tolerance


def test_val_is_the_test_split_where_there_is_no_other(images):
    (images / "test").rename(images / "val")
    splits = load("folder", images, image_size=8)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (27, 3, 6)
    assert splits.val.labels.tolist() == [0, 1, 2]


def test_the_centre_is_kept_and_the_shorter_side_decides(images):
    wide = Image.new("RGB", (48, 16), (255, 0, 0))
    wide.paste((0, 255, 0), (16, 0, 32, 16))
    wide.save(images / "test" / "ant" / "deeper" / "0.bmp")
    image = load("folder", images, image_size=16).test.images[0]
    assert image[1].eq(255).all() and image[0].eq(0).all()


def test_files_are_decoded_once_and_again_when_one_changed(images, monkeypatch):
    first = load("folder", images, image_size=8).test.images.clone()
    monkeypatch.setattr(decoded, "_image", lambda *_: pytest.fail("decoded again"))
    assert load("folder", images, image_size=8).test.images.equal(first)
    monkeypatch.undo()
    draw(images / "test" / "ant" / "deeper" / "0.bmp", (1, 2, 3))
    os.utime(images / "test" / "ant" / "deeper" / "0.bmp", (1, 1))
    assert load("folder", images, image_size=8).test.images[0, :, 0, 0].tolist() == [1, 2, 3]


def test_what_is_wrong_is_named(images, tmp_path, cache, monkeypatch):
    def refused(pattern):
        with pytest.raises(UserError, match=pattern):
            load("folder", images, image_size=8)
        assert not list(cache.rglob(".tmp-*"))

    broken = images / "train" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    refused(rf"^{broken}: expected an image .*found damage")
    draw(broken, (0, 0, 0))
    monkeypatch.setattr(decoded, "MAX_PIXELS", 40 * 30 - 1)
    refused(r"expected at most 1,199 pixels, found 40x30")
    monkeypatch.undo()
    monkeypatch.setenv("CLEAD_CACHE", str(cache))
    (images / "test" / "dog").mkdir()
    refused(r"dog: expected one of the 3 classes of train")
    (images / "test").rename(tmp_path / "gone")
    refused(r"expected a folder test or val beside train")
    (images / "train").rename(tmp_path / "gone too")
    refused(r"train: expected a folder with one folder of images per class")


def test_a_full_or_forbidden_disk_leaves_nothing(images, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        load("folder", images, image_size=8)
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_too_small_is_left_alone(images, cache, monkeypatch):
    needed = 30 * 3 * 8 * 8
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if fits:
            load("folder", images, image_size=8)
            continue
        with pytest.raises(UserError, match=rf"^{cache}: expected 5,760 bytes free for .*, found 5,759; .*CLEAD_CACHE"):
            load("folder", images, image_size=8)
        assert list(cache.iterdir()) == []


@pytest.fixture
def tiny(tmp_path):
    """Tiny-ImageNet's layout, with its published file names."""
    root = tmp_path / "tiny-imagenet-200"
    names = ("n01443537", "n01629819")
    for name, color in zip(names, COLORS.values(), strict=False):
        for index in range(10):
            draw(root / "train" / name / "images" / f"{name}_{index}.JPEG", color, (64, 64))
    lines = []
    for index in range(4):
        draw(root / "val" / "images" / f"val_{index}.JPEG", list(COLORS.values())[1 - index % 2], (64, 64))
        lines.append(f"val_{index}.JPEG\t{names[1 - index % 2]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("parent", [True, False])
def test_tiny_imagenet(tiny, parent):
    splits = load("tiny_imagenet", tiny.parent if parent else tiny)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 2, 4)
    assert splits.image_size == (64, 64) and splits.test.labels.tolist() == [1, 0, 1, 0]
    assert abs(splits.test.images[0].numpy().mean((1, 2)) - np.array(COLORS["bee"])).max() <= 4
    assert load("tiny_imagenet", tiny, image_size=224).test.images.shape == (4, 3, 224, 224)


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("val_9.JPEG\tn01443537\n", r"val_9\.JPEG: expected a file"),
        ("val_0.JPEG\tn09999999\n", r"val_annotations\.txt: expected a file name and a class of train in line 1"),
        ("../../secret\tn01443537\n", r"val_annotations\.txt: expected a file name"),
    ],
)
def test_tiny_imagenet_with_a_wrong_table(tiny, line, pattern):
    (tiny / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(UserError, match=pattern):
        load("tiny_imagenet", tiny)
