"""Data sets: images as published, with fixed splits."""

import difflib
from collections.abc import Callable
from pathlib import Path

from clead.data.base import Dataset, Splits
from clead.data.cifar10 import load_cifar10
from clead.data.digits import load_digits
from clead.errors import UserError

DATASETS: dict[str, Callable[..., Splits]] = {
    "cifar10": load_cifar10,
    "digits": load_digits,
}

__all__ = ["DATASETS", "Dataset", "Splits", "find_dataset", "load", "load_cifar10", "load_digits"]


def find_dataset(name: str) -> Callable[..., Splits]:
    """The loader of the data set called ``name``; a UserError names the nearest one."""
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown data set {name!r}; the nearest is {near!r}, of {', '.join(DATASETS)}")


def load(name: str, data_dir: Path | None = None, *, download: bool = False) -> Splits:
    """The data set called ``name``.

    Args:
        name: a key of DATASETS.
        data_dir: folder that holds its files; ``data`` when None. The digits need none.
        download: fetch missing files into ``data_dir``; without it nothing touches the network.

    Raises:
        UserError: the name is unknown, or a file is missing, truncated or altered.
    """
    return find_dataset(name)(data_dir, download=download)
