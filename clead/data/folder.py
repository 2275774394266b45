"""Any images in one folder per class: ``train/<class>/…`` beside ``test/`` or ``val/``, as ImageNet's are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from clead.data.base import Dataset, Splits
from clead.data.decoded import SUFFIXES, decode
from clead.errors import UserError

DEFAULT_SIZE = 224


def load_folder(data_dir: Path, *, download: bool = False, image_size: int | None = None) -> Splits:
    """The images of ``data_dir``, uint8 [N, 3, size, size], 224 wide when ``image_size`` is None.

    Classes are the folders of ``train/`` in alphabetical order. ``test/`` is the test split; without it ``val/`` is,
    as with ImageNet, and a tenth of every training class is held out as the validation split. See ``clead.data.load``.
    """
    if download:
        raise UserError("the data set 'folder' is your own images: expected --data-dir DIR, found --download")
    classes = class_folders(data_dir / "train")
    has_test = (data_dir / "test").is_dir()
    if not has_test and not (data_dir / "val").is_dir():
        raise UserError(f"{data_dir}: expected a folder test or val beside train, found neither")
    size, parts = image_size or DEFAULT_SIZE, ("train", "val", "test")
    found = {part: read(data_dir / part, classes, size, part) for part in parts if (data_dir / part).is_dir()}
    if not has_test:
        return Splits.published(found["train"], found["val"]).hold_out(0.1)
    whole = Splits.published(found["train"], found["test"])
    return replace(whole, val=found.get("val", whole.val))


def class_folders(train: Path) -> tuple[str, ...]:
    """The names of the folders in ``train``, sorted."""
    if not train.is_dir():
        raise UserError(f"{train}: expected a folder with one folder of images per class, found none")
    classes = tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
    if len(classes) < 2:
        raise UserError(f"{train}: expected a folder for each of two classes or more, found {len(classes)}")
    return classes


def read(folder: Path, classes: tuple[str, ...], size: int, part: str) -> Dataset:
    """The images in ``folder/<class>/``, at any depth, class by class."""
    unknown = sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise UserError(f"{folder / unknown[0]}: expected one of the {len(classes)} classes of train, found another")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        files += own
        labels += [label] * len(own)
    if not files:
        raise UserError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
    title = f"{folder.parent.resolve().name}/{part}"
    images = decode(files, size, title.replace("/", "-"))
    return Dataset(title, images, torch.tensor(labels), classes, 255, mapped=True)
