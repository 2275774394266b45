"""Sums of rows over the shares that several programs see, in Triton: [sums, shares, rows]."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_partials(sums, partials, anchor, rows, COUNT: tl.constexpr):
    """The sums of this program's share; integers by their bits."""
    for which in tl.static_range(COUNT):
        place = (which * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * rows + anchor
        tl.store(partials + place, sums[which].to(tl.float32, bitcast=True), mask=anchor < rows)


@triton.jit
def load_partials(partials, which, anchor, rows, shares, other, SHARES: tl.constexpr):
    """One of the sums, of every share: [anchors, SHARES], ``other`` beyond the last."""
    share = tl.arange(0, SHARES)[None, :]
    place = (which * shares + share).to(tl.int64) * rows + anchor[:, None]
    return tl.load(partials + place, mask=(anchor < rows)[:, None] & (share < shares), other=other)


@triton.jit
def add_partials(partials, which, anchor, rows, shares, SHARES: tl.constexpr):
    """One of the sums, over all shares."""
    return tl.sum(load_partials(partials, which, anchor, rows, shares, 0.0, SHARES), axis=1)


@triton.jit
def gather_partials(partials, which, anchor, rows, shares, k, BOUNDED: tl.constexpr, SHARES: tl.constexpr):
    """(offset, sum, moment) over all shares of the three from ``which`` on."""
    return gathered(
        load_partials(partials, which, anchor, rows, shares, float("-inf"), SHARES),
        load_partials(partials, which + 1, anchor, rows, shares, 0.0, SHARES),
        load_partials(partials, which + 2, anchor, rows, shares, 0.0, SHARES), k, BOUNDED, True,
    )  # fmt: skip


@triton.jit
def gathered(offset, total, moment, k, BOUNDED: tl.constexpr, SLOPE: tl.constexpr):
    """(offset, sum, moment) of rows [BLOCK_M] from those of the columns of a tile."""
    largest = tl.max(offset, axis=1)
    if BOUNDED:
        return largest, tl.sum(total, axis=1), tl.sum(moment, axis=1) if SLOPE else largest
    else:
        step = tl.where(offset == float("-inf"), 0.0, offset - largest[:, None])
        factor = tl.exp2(k * step)
        total = total * factor
        if SLOPE:
            moment = moment * factor + step * total
        return largest, tl.sum(total, axis=1), tl.sum(moment, axis=1) if SLOPE else largest
