"""STL-10 from its official binary files.

Coates, Ng and Lee, "An analysis of single-layer networks in unsupervised feature learning", AISTATS 2011.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clead.data.base import Dataset, Splits
from clead.data.download import fetch
from clead.errors import UserError

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
IMAGES = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
FOLDER = "stl10_binary"
PIXELS = 3 * 96 * 96

URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
ARCHIVE_MD5 = "91f7769df0f17e558f3565bffb0c7dfb"


def load_stl10(data_dir: Path, *, download: bool = False, image_size: int | None = None) -> Splits:
    """STL-10's labelled images, uint8 [N, 3, 96, 96], split 4,500/500/8,000; see ``clead.data.load``."""
    folder = _folder(data_dir, download, ("train", "test"))
    whole = Splits.published(*(_dataset(folder, name) for name in ("train", "test")))
    return whole.hold_out(0.1).at_size(image_size)


def load_stl10_unlabeled(data_dir: Path, *, download: bool = False, image_size: int | None = None) -> Splits:
    """STL-10's 100,000 images without labels (-1) as the training split, beside the 8,000 labelled test images.

    They stay in their file and are read as they are asked for. The statistics are those of the labelled training
    images. See ``clead.data.load``.
    """
    folder = _folder(data_dir, download, ("train", "test", "unlabeled"))
    train, test, unlabeled = (_dataset(folder, name) for name in ("train", "test", "unlabeled"))
    return replace(Splits.published(train, test), train=unlabeled).at_size(image_size)


def _folder(data_dir: Path, download: bool, parts: tuple[str, ...]) -> Path:
    needed = {f"{name}_X.bin": IMAGES[name] * PIXELS for name in parts}
    needed |= {f"{name}_y.bin": IMAGES[name] for name in parts if name != "unlabeled"}
    folders = (data_dir / FOLDER, data_dir)

    def complete(folder: Path) -> bool:
        return all((folder / name).is_file() for name in needed)

    if download and not any(map(complete, folders)):
        fetch(URL, f"md5:{ARCHIVE_MD5}", data_dir, {f"{FOLDER}/{name}": size for name, size in needed.items()})
    folder = next(filter(complete, folders), None)
    if folder is None:
        raise UserError(
            f"no STL-10 files ({', '.join(needed)}) in {' or '.join(map(str, folders))}: "
            "name their folder with --data-dir DIR, or fetch them with --download"
        )
    for name, size in needed.items():
        found = (folder / name).stat().st_size
        if found != size:
            raise UserError(f"{folder / name}: expected {size:,} bytes, found {found:,}")
    return folder


def _dataset(folder: Path, name: str) -> Dataset:
    # Copy-on-write, because torch wants memory it may write to; nothing does.
    pixels = np.memmap(folder / f"{name}_X.bin", np.uint8, "c", shape=(IMAGES[name], 3, 96, 96))
    images = torch.from_numpy(pixels).transpose(2, 3)  # stored column by column
    return Dataset(f"stl10/{name}", images, _labels(folder, name), CLASSES, 255, mapped=True)


def _labels(folder: Path, name: str) -> Tensor:
    if name == "unlabeled":
        return torch.full((IMAGES[name],), -1)
    path = folder / f"{name}_y.bin"
    published = np.fromfile(path, np.uint8)
    wrong = np.flatnonzero((published < 1) | (published > len(CLASSES)))
    if len(wrong):
        raise UserError(f"{path}: expected labels 1 to 10, found {published[wrong[0]]} at image {wrong[0]:,}")
    return torch.from_numpy(published).to(torch.int64) - 1
