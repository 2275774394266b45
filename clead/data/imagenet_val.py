"""ImageNet's validation images as its models are tested on them, and nothing to train on.

Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 2015, arXiv:1409.0575.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clead.data.base import Dataset, Splits
from clead.data.folder import class_folders, read
from clead.errors import UserError

SIZE, RESIZED = 224, 256  # the centre of images whose shorter side is that long
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of the training images, as everyone has them


def load_imagenet_val(data_dir: Path, *, download: bool = False, image_size: int | None = None) -> Splits:
    """The images of ``val/<class>/`` in ``data_dir``, or of ``<class>/`` there, uint8 [N, 3, 224, 224].

    They are resized, bilinear, until the shorter side is 8/7 of ``image_size`` (256 for 224), and the centre is kept.
    Labels number the folders in alphabetical order, which is how torchvision and the official codes number the 1,000
    identifiers (n01440764, …). Training and validation splits are empty. See ``clead.data.load``.
    """
    folder = data_dir / "val" if (data_dir / "val").is_dir() else data_dir
    if download:
        raise UserError("the data set 'imagenet_val' cannot be fetched: expected --data-dir DIR, found --download")
    classes, size = class_folders(folder), image_size or SIZE
    resized = round(size * RESIZED / SIZE)
    whole = read(folder, classes, resized, "val")
    edge = (resized - size) // 2
    test = replace(whole, images=whole.images[..., edge : edge + size, edge : edge + size])
    nothing = Dataset("imagenet/train", test.images[:0], test.labels[:0], classes, 255)
    return Splits(nothing, nothing, test, *STATISTICS)
