"""Tile shapes of the contrastive Triton kernels: a table, because tuning at run time costs launches and determinism.

Every row is compiled for compute capabilities 8.0 and 9.0 by ``tests/kernels/test_triton_compile.py``, which fails on a
spilled register and beyond the shared memory of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

MAX_WIDTH = 512
"""Largest number of dimensions: a program keeps whole rows, padded to a power of two, and their gradient."""


class Config(NamedTuple):
    """Rows a program owns, rows it takes from the other side at a time, warps, pipeline stages."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# (kernel, padded width, bytes per element): few anchors (latency decides), many anchors (throughput decides).
TABLE: dict[tuple[str, int, int], tuple[Config, Config]] = {
    ("forward", 64, 2): (Config(32, 64, 4, 2), Config(128, 64, 8, 2)),
    ("forward", 128, 2): (Config(32, 64, 4, 2), Config(128, 64, 8, 2)),
    ("forward", 256, 2): (Config(32, 64, 4, 2), Config(64, 64, 8, 2)),
    ("forward", 512, 2): (Config(32, 32, 4, 2), Config(64, 32, 8, 2)),
    ("forward", 64, 4): (Config(32, 32, 4, 2), Config(64, 64, 8, 2)),
    ("forward", 128, 4): (Config(32, 32, 4, 2), Config(64, 32, 8, 2)),
    ("forward", 256, 4): (Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    ("forward", 512, 4): (Config(32, 16, 4, 2), Config(32, 16, 4, 2)),
    ("backward", 64, 2): (Config(32, 64, 4, 2), Config(128, 64, 8, 2)),
    ("backward", 128, 2): (Config(32, 64, 4, 2), Config(64, 64, 8, 2)),
    ("backward", 256, 2): (Config(32, 32, 4, 2), Config(64, 32, 8, 2)),
    ("backward", 512, 2): (Config(32, 32, 8, 2), Config(32, 32, 8, 2)),
    ("backward", 64, 4): (Config(32, 32, 4, 2), Config(64, 32, 8, 2)),
    ("backward", 128, 4): (Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    ("backward", 256, 4): (Config(32, 16, 8, 2), Config(32, 16, 8, 2)),
    ("backward", 512, 4): (Config(16, 16, 8, 2), Config(16, 16, 8, 2)),
}

FEW_ANCHORS = 8192
"""Up to so many rows the small tile of the table is taken: large ones would leave processors without work."""


def padded_width(width: int) -> int:
    """The next power of two, at least 16: what a tile holds."""
    return max(16, 1 << max(width - 1, 0).bit_length())


def config(kernel: str, width: int, dtype: torch.dtype, rows: int) -> Config:
    """The tile shape for ``rows`` owned rows of ``width`` dimensions."""
    small, large = TABLE[kernel, max(padded_width(width), 64), dtype.itemsize]
    return small if rows <= FEW_ANCHORS else large
