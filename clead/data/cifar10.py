"""CIFAR-10 from its official files, in the binary form or as Python pickles.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from clead.data.base import Dataset, Splits, stratified_split
from clead.data.cifar_pickle import read_pickle
from clead.data.download import fetch
from clead.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of all 50,000 training images, the published numbers; tests compare them with the pixels.
MEAN = (0.49139968, 0.48215841, 0.44653091)
STD = (0.24703223, 0.24348513, 0.26158784)

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BINARY, PICKLES = "cifar-10-batches-bin", "cifar-10-batches-py"
# Of every batch in the binary form. A pickle is compared after unpickling: re-pickled copies differ in other bytes.
SHA256 = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
IMAGES_PER_BATCH = 10_000
ROW = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes
# An official pickle also holds 10,000 file names: 31 MB. Python 3's protocol 2 spells bytes in UTF-8, up to two each.
PICKLE_OVERHEAD = 9_000_000

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def load_cifar10(
    data_dir: Path = Path("data"), *, download: bool = False, image_size: int | None = None, val_size: int = 5000
) -> Splits:
    """CIFAR-10, uint8 [N, 3, 32, 32], split 45,000/5,000/10,000.

    Args:
        data_dir: the folder with the batches, or the one above it.
        download: fetch the files into ``data_dir`` when some are missing.
        image_size: height and width to resize to; None keeps 32.
        val_size: images held out of the training set, the same ones always; 0 keeps all for training.

    Raises:
        UserError: a file is missing, truncated or altered, or the download failed.
    """
    train_size = 5 * IMAGES_PER_BATCH
    if not 0 <= val_size < train_size:
        raise UserError(f"val_size must be in [0, {train_size}), got {val_size}")
    if download and _missing(_find(data_dir)):
        members = {f"{BINARY}/{name}.bin": IMAGES_PER_BATCH * ROW for name in BATCHES}
        fetch(URL, f"sha256:{ARCHIVE_SHA256}", data_dir, members)
    rows = torch.from_numpy(read_batches(data_dir))
    images, labels = rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].to(torch.int64)
    parts = stratified_split(labels[:train_size], (train_size - val_size, val_size))
    train, val, test = (
        Dataset(f"cifar10/{name}", images[indices], labels[indices], CLASSES, 255)
        for name, indices in zip(("train", "val", "test"), (*parts, torch.arange(train_size, len(labels))), strict=True)
    )
    return Splits(train, val, test, MEAN, STD).at_size(image_size)


def read_batches(data_dir: Path) -> npt.NDArray[np.uint8]:
    """All batches, training first, as the rows of the binary form: uint8 [60000, 3073]."""
    paths = _find(data_dir)
    missing = _missing(paths)
    if len(missing) == len(paths):
        raise UserError(
            f"no CIFAR-10 files in {data_dir}, {data_dir / BINARY} or {data_dir / PICKLES}: "
            "name their folder with --data-dir DIR, or fetch them with --download"
        )
    if missing:
        raise UserError(f"{missing[0]}: expected a file, found none")
    for path in paths:
        _check_size(path)
    return np.concatenate([_read(path) for path in paths])


def _find(data_dir: Path) -> list[Path]:
    """Where the batches are, or should be: the folder and form of which most files exist."""
    layouts = [
        [folder / f"{name}{suffix}" for name in BATCHES]
        for folder in (data_dir / BINARY, data_dir / PICKLES, data_dir)
        for suffix in (".bin", "")
    ]
    return min(layouts, key=lambda paths: len(_missing(paths)))


def _missing(paths: list[Path]) -> list[Path]:
    return [path for path in paths if not path.is_file()]


def _check_size(path: Path) -> None:
    size, pixels = path.stat().st_size, IMAGES_PER_BATCH * (ROW - 1)
    if path.suffix == ".bin" and size != IMAGES_PER_BATCH * ROW:
        raise UserError(f"{path}: expected {IMAGES_PER_BATCH * ROW:,} bytes, found {size:,}")
    largest = 2 * pixels + PICKLE_OVERHEAD
    if path.suffix != ".bin" and not pixels < size <= largest:
        raise UserError(f"{path}: expected {pixels:,} to {largest:,} bytes, found {size:,}")


def _read(path: Path) -> npt.NDArray[np.uint8]:
    if path.suffix == ".bin":
        rows = np.fromfile(path, np.uint8).reshape(IMAGES_PER_BATCH, ROW)
    else:
        rows = read_pickle(path, IMAGES_PER_BATCH)
    wrong = np.flatnonzero(rows[:, 0] >= len(CLASSES))
    if len(wrong):
        raise UserError(f"{path}: expected labels 0 to 9, found {rows[wrong[0], 0]} at image {wrong[0]:,}")
    expected, found = SHA256.get(path.stem), hashlib.sha256(rows.data).hexdigest()
    if expected not in (None, found):
        raise UserError(f"{path}: altered: expected labels and pixels with sha256 {expected}, found {found}")
    return rows
