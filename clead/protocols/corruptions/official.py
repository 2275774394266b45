"""The official CIFAR-10-C files: ``<type>.npy`` uint8 [50000, 32, 32, 3], severity by severity, and ``labels.npy``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clead.data import Dataset
from clead.errors import UserError, one_line


def read_official(folder: Path, dataset: Dataset, name: str, severity: int) -> Dataset:
    """The images of ``folder/<name>.npy`` at one severity, in the order of ``dataset``, whose labels they must have.

    Args:
        folder: what CIFAR-10-C.tar unpacks to.
        dataset: the whole uncorrupted test split, N images.
        name: the type, such as gaussian_noise.
        severity: 1 to 5.

    Raises:
        UserError: a file is missing or damaged, or made of other images.
    """
    size, (channels, height, width) = len(dataset), dataset.images.shape[1:]
    images = _read(folder / f"{name}.npy", (5 * size, height, width, channels))
    labels = _read(folder / "labels.npy", (5 * size,))
    part = slice((severity - 1) * size, severity * size)
    if not np.array_equal(labels[part], dataset.labels.cpu().numpy()):
        raise UserError(f"{folder / 'labels.npy'}: expected the labels of {dataset.name}, found others")
    tensor = torch.from_numpy(np.array(images[part])).permute(0, 3, 1, 2).contiguous()
    return replace(dataset, images=tensor.to(dataset.images.device), max_value=255)


def _read(file: Path, shape: tuple[int, ...]) -> Any:
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # reads no archives and no pickles, as np.load may
    except FileNotFoundError as error:
        raise UserError(f"{file}: expected a file of CIFAR-10-C, found none") from error
    except OSError:
        raise
    except Exception as error:  # a damaged header may raise anything
        raise UserError(f"{file}: expected a file of numpy, found {one_line(error)}") from error
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{file}: expected integers {list(shape)}, found {array.dtype} {list(array.shape)}")
    return array
