"""The official files of corrupted images, in the layouts of CIFAR-10-C and of ImageNet-C.

CIFAR-10-C has ``<type>.npy``, uint8 [50000, 32, 32, 3], severity by severity, and ``labels.npy``; ImageNet-C has
folders ``<type>/<severity>/<class>/`` with the images' own file names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clead.data import Dataset
from clead.data.folder import read as read_classes
from clead.errors import UserError, one_line


def read_official(folder: Path, dataset: Dataset, name: str, severity: int) -> Dataset:
    """The images of one type at one severity, in the order of ``dataset``, whose labels they must have.

    Args:
        folder: what CIFAR-10-C.tar unpacks to, or ImageNet-C's archives.
        dataset: the whole uncorrupted test split, N images.
        name: the type, such as gaussian_noise.
        severity: 1 to 5.

    Raises:
        UserError: a file is missing or damaged, or made of other images.
    """
    if (folder / name).is_dir():
        return _read_folders(folder / name / str(severity), dataset)
    size, (channels, height, width) = len(dataset), dataset.images.shape[1:]
    images = _read(folder / f"{name}.npy", (5 * size, height, width, channels))
    labels = _read(folder / "labels.npy", (5 * size,))
    part = slice((severity - 1) * size, severity * size)
    if not np.array_equal(labels[part], dataset.labels.cpu().numpy()):
        raise UserError(f"{folder / 'labels.npy'}: expected the labels of {dataset.name}, found others")
    tensor = torch.from_numpy(np.array(images[part])).permute(0, 3, 1, 2).contiguous()
    return replace(dataset, images=tensor.to(dataset.images.device), max_value=255)


def _read_folders(folder: Path, dataset: Dataset) -> Dataset:
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of ImageNet-C, found none")
    found = read_classes(folder, dataset.classes, dataset.images.shape[-1], f"{folder.parent.name}-{folder.name}")
    if not found.labels.equal(dataset.labels.cpu()):
        raise UserError(f"{folder}: expected the {len(dataset)} images of {dataset.name}, found {len(found)} of others")
    return replace(dataset, images=found.images.to(dataset.images.device), max_value=255)


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
