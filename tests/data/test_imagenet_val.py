import numpy as np
import pytest
from PIL import Image

from clead.data import load
from clead.errors import UserError


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Two classes of two 60x40 images, dark but for a white 20x20 square in the middle."""
    monkeypatch.setenv("CLEAD_CACHE", str(tmp_path / "cache"))
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = 255
    for name in ("n02", "n01"):
        for index in range(2):
            path = tmp_path / "imagenet" / "val" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "imagenet"


def test_the_centre_of_the_resized_image_is_tested_on(images):
    splits = load("imagenet_val", images, image_size=28)  # resized to 32 high, where the square is 16 wide
    test = splits.test
    assert test.images.shape == (4, 3, 28, 28) and test.labels.tolist() == [0, 0, 1, 1]
    assert test.classes == ("n01", "n02") and len(splits.train) == len(splits.val) == 0
    white = (test.images[0, 0] > 127).nonzero()
    assert white.min(0).values.tolist() == [6, 6] and white.max(0).values.tolist() == [21, 21]
    assert splits.mean == (0.485, 0.456, 0.406)
    assert load("imagenet_val", images).test.images.shape == (4, 3, 224, 224)
    assert load("imagenet_val", images / "val", image_size=28).test.images.equal(test.images)


def test_what_is_missing_is_named(images, tmp_path):
    with pytest.raises(UserError, match="cannot be fetched: expected --data-dir DIR"):
        load("imagenet_val", images, download=True)
    (tmp_path / "flat" / "val").mkdir(parents=True)
    with pytest.raises(UserError, match="val: expected a folder for each of two classes or more, found 0"):
        load("imagenet_val", tmp_path / "flat")
