"""CIFAR-100 with its fine labels, from its official files, in the binary form or as Python pickles.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from clead.data.base import Dataset, Splits
from clead.data.cifar_pickle import read_pickle
from clead.data.download import fetch
from clead.errors import UserError

_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CLASSES = tuple(_NAMES.split())
IMAGES = {"train": 50_000, "test": 10_000}
BINARY, PICKLES = "cifar-100-binary", "cifar-100-python"
ROW = 2 + 3 * 32 * 32  # the coarse label, the fine one, then the red, green and blue planes

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
ARCHIVE_MD5 = "03b5dce01913d631647c71ecec9e9cb8"


def load_cifar100(data_dir: Path, *, download: bool = False, image_size: int | None = None) -> Splits:
    """CIFAR-100, uint8 [N, 3, 32, 32], split 45,000/5,000/10,000; see ``clead.data.load``."""
    if download and _find(data_dir) is None:
        fetch(URL, f"md5:{ARCHIVE_MD5}", data_dir, {f"{BINARY}/{name}.bin": IMAGES[name] * ROW for name in IMAGES})
    found = _find(data_dir)
    if found is None:
        raise UserError(
            f"no CIFAR-100 files (train and test) in {data_dir}, {data_dir / BINARY} or {data_dir / PICKLES}: "
            "name their folder with --data-dir DIR, or fetch them with --download"
        )
    whole = Splits.published(*(_dataset(found[name], name) for name in IMAGES))
    return whole.hold_out(0.1).at_size(image_size)


def _find(data_dir: Path) -> dict[str, Path] | None:
    """Both files, in the first folder and form that has them."""
    for folder in (data_dir / BINARY, data_dir / PICKLES, data_dir):
        for suffix in (".bin", ""):
            paths = {name: folder / f"{name}{suffix}" for name in IMAGES}
            if all(path.is_file() for path in paths.values()):
                return paths
    return None


def _dataset(path: Path, name: str) -> Dataset:
    rows = _read(path, IMAGES[name])
    wrong = np.flatnonzero(rows[:, 0] >= len(CLASSES))
    if len(wrong):
        raise UserError(f"{path}: expected labels 0 to 99, found {rows[wrong[0], 0]} at image {wrong[0]:,}")
    both = torch.from_numpy(rows)
    return Dataset(f"cifar100/{name}", both[:, 1:].reshape(-1, 3, 32, 32), both[:, 0].to(torch.int64), CLASSES, 255)


def _read(path: Path, images: int) -> npt.NDArray[np.uint8]:
    """uint8 [images, 3073]: the fine label, then the pixels."""
    size, pixels = path.stat().st_size, images * (ROW - 2)
    if path.suffix != ".bin":
        # File names and two lists of labels come to a few dozen bytes an image; protocol 2 may double the pixels.
        if not pixels < size <= 2 * pixels + 1000 * images:
            raise UserError(f"{path}: expected {pixels:,} to {2 * pixels + 1000 * images:,} bytes, found {size:,}")
        return read_pickle(path, images, labels="fine_labels")
    if size != images * ROW:
        raise UserError(f"{path}: expected {images * ROW:,} bytes, found {size:,}")
    return np.fromfile(path, np.uint8).reshape(images, ROW)[:, 1:]
