"""How the rows that programs run over are shared out, where the rows of their own are too few to occupy a device.

Free of Triton: ``bench predict`` asks the same. What comes of a share is gathered in a fixed order, so results depend
on the device's number of processors, never on the run.
"""

from __future__ import annotations

import functools

import torch

LEAST = 8
"""Tiles of a share: with fewer, what it costs to gather the shares shows."""

MOST = 64
"""Shares: what gathers them may take all at once."""

WARPS = 8
"""Of a processor, hide the latency of its products."""

FILLED = 0.9
"""Part of all places for programs that is enough: more shares cost more memory."""

_ELSEWHERE = 128  # processors of a device that cannot be asked: the interpreter's


@functools.lru_cache(maxsize=1024)
def share_out(
    rows: int, columns: int, block_m: int, block_n: int, warps: int, processors: int, least: int = LEAST
) -> tuple[int, int]:
    """(columns of a share, a multiple of ``block_n``; number of shares) for programs of ``block_m`` rows.

    One share where every processor has two programs without; else the fewest that fill whole rounds of programs, at
    most as many as keep the rows that all shares leave within twice the rows of both sides.
    """
    blocks, tiles = -(-rows // block_m), max(1, -(-columns // block_n))
    places = processors * max(1, WARPS // warps)

    def filled(count: int) -> float:
        programs = blocks * count
        return min(programs / (-(-programs // places) * places), FILLED)

    most = min(tiles // least, MOST, 2 * (rows + columns) // rows) if blocks < 2 * processors else 1
    count = max(range(1, max(most, 1) + 1), key=filled)  # of equal ones the first
    length = -(-tiles // count)
    return length * block_n, -(-tiles // length)


def occupies(rows: int, columns: int, block_m: int, block_n: int, processors: int) -> bool:
    """Whether the products would give every processor ``LEAST`` tiles of this shape.

    ``share_out`` may make fewer programs of them (``MOST``, memory): large tiles, which read less, pay all the same.
    """
    return rows >= block_m and -(-rows // block_m) * max(1, -(-columns // block_n) // LEAST) >= processors


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of ``device``."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _ELSEWHERE
