"""Few rows, each of several programs that see a share of the other side: who sees what, and where the shares meet."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._shares import MOST, processors, share_out
from .._triton_rows import Config

# Of the programs that put shares together: only rows, warps and stages mean anything.
CLOSE = Config(16, 1, 1, 4, 2)
MERGE = Config(4, 1, 1, 4, 2)
GATHER = {width: Config(4, 1, 1, 4 if width > 256 else 2, 2) for width in (64, 128, 256, 512)}  # by padded width


class Division(NamedTuple):
    """Programs for blocks of rows and for shares, rows of the other side in a share, and what goes between kernels."""

    grid: tuple[int, int]
    length: int
    partials: Tensor


def divide(shape: Config, rows: int, columns: int, values: int, like: Tensor) -> Division:
    """``values``: float32 numbers that a program leaves of each row where there are several shares."""
    length, shares = share_out(rows, columns, shape.block_m, shape.block_n, shape.warps, processors(like.device))
    partials = like.new_empty(values * shares * rows if shares > 1 else 0, dtype=torch.float32)
    return Division((-(-rows // shape.block_m), shares), length, partials)


def put_together(kernel: Any, shape: Config, division: Division, rows: int, *arguments: Any, **flags: Any) -> None:
    """Run the kernel that makes of all shares what one program for them would have made, where there are several."""
    shares = division.grid[1]
    if shares > 1:
        taken = {name: value for name, value in (flags | {"SHARES": MOST}).items() if name in kernel.arg_names}
        kernel[(-(-rows // shape.block_m),)](
            division.partials, shares, rows, *arguments, BLOCK_M=shape.block_m, num_warps=shape.warps, **taken
        )
