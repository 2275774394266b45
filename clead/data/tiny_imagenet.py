"""Tiny-ImageNet-200 in its official layout.

Le and Yang, "Tiny ImageNet visual recognition challenge", CS 231N, Stanford 2015.
"""

from __future__ import annotations

from pathlib import Path

import torch

from clead.data.base import Dataset, Splits
from clead.data.decoded import decode
from clead.data.folder import class_folders, read
from clead.errors import UserError

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
IMAGE_SIZE = 64


def load_tiny_imagenet(data_dir: Path, *, download: bool = False, image_size: int | None = None) -> Splits:
    """Tiny-ImageNet, uint8 [N, 3, 64, 64], split 90,000/10,000/10,000; the published validation images are the test.

    See ``clead.data.load``.
    """
    folder = data_dir / FOLDER if (data_dir / FOLDER).is_dir() else data_dir
    if not (folder / "val" / "val_annotations.txt").is_file():
        raise UserError(
            f"no Tiny-ImageNet (train/ and val/val_annotations.txt) in {data_dir} or {data_dir / FOLDER}: "
            f"unpack {URL} there"
        )
    classes, size = class_folders(folder / "train"), image_size or IMAGE_SIZE
    train, test = read(folder / "train", classes, size, "train"), _published_val(folder / "val", classes, size)
    return Splits.published(train, test).hold_out(0.1)


def _published_val(folder: Path, classes: tuple[str, ...], size: int) -> Dataset:
    """All images of ``val/images``, whose classes are in ``val_annotations.txt``: name, class, then a box."""
    table = folder / "val_annotations.txt"
    files: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(table.read_text().splitlines(), start=1):
        fields = line.split("\t")
        name = fields[0]
        if len(fields) < 2 or fields[1] not in classes or Path(name).name != name:
            raise UserError(f"{table}: expected a file name and a class of train in line {number}, found {line!r:.80}")
        files.append(folder / "images" / name)
        labels.append(classes.index(fields[1]))
    missing = next((file for file in files if not file.is_file()), None)
    if missing or not files:
        raise UserError(f"{missing or table}: expected {'a file' if missing else 'images'}, found none")
    images = decode(files, size, f"{FOLDER}-val")
    return Dataset(f"{FOLDER}/val", images, torch.tensor(labels), classes, 255, mapped=True)
