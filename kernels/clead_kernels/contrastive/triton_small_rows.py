"""What both kernels for few rows share: where statistics are, marks of positives; and the norms of the forward."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import TINY, load_rows, squared_norm
from . import small as layout

PARTIALS = tl.constexpr(layout.PROGRAMS)
SHARE = tl.constexpr(layout.SHARE)
ROWS = tl.constexpr(layout.ROWS)
# Compiled kernels are kept and launched again with other arguments: what is compiled must not depend on these.
NUMBERS = ["rows", "columns", "shift", "threshold_stride"]
ANYWHERE = [
    "sharpness", "groups", "candidate_groups", "threshold", "clusters", "candidate_clusters", "row_weights",
    "grad_loss", "grad_temperature",
]  # fmt: skip


@triton.jit
def marks(index, count, rows, columns, shift, groups, POSITIVES: tl.constexpr, ANCHORS: tl.constexpr):
    """Marks of rows: an anchor and a candidate with the same one are a positive pair. -1 of one side has no equal.

    POSITIVES: "groups" as given; "views", rows of the same remainder by ``shift``; "place", candidate (i + shift) mod M
    is the positive of anchor i; "index", the one that ``groups`` names for each anchor.
    """
    if POSITIVES == "groups":
        return tl.load(groups + index, mask=index < count, other=0)
    elif POSITIVES == "views":
        return tl.where(index < count, index % shift, -1 if ANCHORS else -2)
    elif not ANCHORS:
        return index
    elif POSITIVES == "index":
        place = tl.load(groups + index, mask=index < count, other=-1)
        return tl.where((place >= 0) & (place < columns), place, -1).to(tl.int32)
    else:
        return (index + shift) % rows


@triton.jit
def inverse_norms_of(
    x, index, count, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """1 / max(|x|, 1e-12) of rows that are read for this alone."""
    square = tl.zeros([index.shape[0]], tl.float32)
    for first in range(0, D, BLOCK_K):
        square += squared_norm(load_rows(x, index, count, D, D, first, BLOCK_K))
    return reciprocal_root(square, EXACT)


@triton.jit
def reciprocal_root(square, EXACT: tl.constexpr):
    """1 / max(sqrt(square), 1e-12); EXACT: rounded once, else to a unit of float32 and without a branch."""
    if EXACT:
        return (1.0 / tl.maximum(tl.sqrt(square.to(tl.float64)), TINY)).to(tl.float32)
    else:
        square = tl.maximum(square, 1e-24)
        root = tl.rsqrt(square)
        return root * (1.5 - (0.5 * square * root) * root)
