"""The default data set: 1,797 real 8x8 images of handwritten digits that come with scikit-learn.

E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998; this is its
test set, as bitmaps counted in 4x4 blocks: integers 0 … 16.
"""

from __future__ import annotations

from pathlib import Path

import torch

from clead.data.base import Dataset, Splits, channel_statistics, stratified_split

SIZES = (1197, 100, 500)
MAX_VALUE = 16


def load_digits(data_dir: Path | None = None, *, download: bool = False, image_size: int | None = None) -> Splits:
    """Digits, uint8 [N, 1, 8, 8] in 0 … 16, split 1,197/100/500; nothing is read from ``data_dir`` or downloaded."""
    from sklearn import datasets  # a second of import time that the other data sets need not pay

    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    classes = tuple(str(digit) for digit in range(10))
    train, val, test = (
        Dataset(f"digits/{name}", images[indices], labels[indices], classes, MAX_VALUE)
        for name, indices in zip(("train", "val", "test"), stratified_split(labels, SIZES), strict=True)
    )
    return Splits(train, val, test, *channel_statistics(train.images, MAX_VALUE)).at_size(image_size)
