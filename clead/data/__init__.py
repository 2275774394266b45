"""Data sets: images as published, with fixed splits."""

import difflib
from collections.abc import Callable
from pathlib import Path

from clead.data.base import Dataset, Splits
from clead.data.cifar10 import load_cifar10
from clead.data.cifar100 import load_cifar100
from clead.data.digits import load_digits
from clead.data.folder import load_folder
from clead.data.imagenet_val import load_imagenet_val
from clead.data.stl10 import load_stl10, load_stl10_unlabeled
from clead.data.tiny_imagenet import load_tiny_imagenet
from clead.errors import UserError

DATASETS: dict[str, Callable[..., Splits]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "folder": load_folder,
    "imagenet_val": load_imagenet_val,
    "stl10": load_stl10,
    "stl10_unlabeled": load_stl10_unlabeled,
    "tiny_imagenet": load_tiny_imagenet,
}

__all__ = ["DATASETS", "Dataset", "Splits", "find_dataset", "load", "load_cifar10", "load_digits"]


def find_dataset(name: str) -> Callable[..., Splits]:
    """The loader of the data set called ``name``; a UserError names the nearest one."""
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown data set {name!r}; the nearest is {near!r}, of {', '.join(DATASETS)}")


def load(name: str, data_dir: Path | None = None, *, download: bool = False, image_size: int | None = None) -> Splits:
    """The data set called ``name``.

    Args:
        name: a key of DATASETS.
        data_dir: folder that holds its files; ``data`` when None. The digits need none.
        download: fetch missing files into ``data_dir``, where they may be fetched; without it nothing touches the
            network.
        image_size: height and width to resize to; None keeps the published size (224 for folders of images
            and ImageNet).

    Raises:
        UserError: the name is unknown, or a file is missing, truncated or altered.
    """
    return find_dataset(name)(data_dir or Path("data"), download=download, image_size=image_size)
