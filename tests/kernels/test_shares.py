"""How the long side of few rows is shared out among programs: hand numbers, and what must hold of any."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from clead_kernels import _shares
from clead_kernels._shares import occupies, processors, share_out

pytestmark = pytest.mark.kernels


def test_a_queue_by_hand():
    """4 blocks of 128 on 132 processors: 29 shares give 116 programs, 30 give 120, the first over 90% of 132."""
    # 65536 / 32 = 2048 tiles, 69 in each of 30 shares but the last.
    assert share_out(512, 65536, 128, 32, 8, 132) == (69 * 32, 30)
    # Blocks of 32 with 4 warps: two programs a processor, 16 blocks x 15 shares = 240 of 264; 1024 tiles, 69 each.
    assert share_out(512, 65536, 32, 64, 4, 132) == (69 * 64, 15)


def test_where_nothing_is_shared():
    assert share_out(132 * 32, 65536, 32, 64, 8, 132)[1] == 1  # a program for every processor
    assert share_out(270 * 32, 65536, 32, 64, 8, 132)[1] == 1  # two, and a few more
    assert share_out(512, 15 * 64, 32, 64, 4, 132) == (15 * 64, 1)  # 15 tiles are not two times 8
    assert share_out(7, 0, 32, 64, 4, 132) == (64, 1)


def test_a_second_round_that_is_nearly_empty():
    """128 blocks on 108 processors fill 59% of two rounds; 4 shares, 512 programs, 95% of five."""
    assert share_out(8192, 8192, 64, 64, 8, 108) == (32 * 64, 4)


def test_memory_bounds_the_shares():
    """67 blocks on 132 processors: 7 shares would be needed for 90%, 4 x M rows are twice both sides."""
    assert share_out(67 * 128, 67 * 128, 128, 32, 8, 132)[1] <= 4


@pytest.mark.parametrize(
    ("rows", "columns"), list(product([1, 31, 500, 4097, 16000], [1, 63, 64, 1000, 65537, 2**31 - 1]))
)
@pytest.mark.parametrize(("block_m", "block_n", "warps"), [(32, 64, 4), (128, 32, 8), (16, 128, 4)])
@pytest.mark.parametrize("device", [1, 16, 108, 132])
def test_shares_cover_the_columns_once_and_none_is_empty(rows, columns, block_m, block_n, warps, device):
    length, count = share_out(rows, columns, block_m, block_n, warps, device)
    assert length % block_n == 0
    assert (count - 1) * length < columns <= count * length
    assert 1 <= count <= _shares.MOST
    assert count == 1 or count * rows <= 2 * (rows + columns)
    assert count == 1 or length >= _shares.LEAST * block_n


def test_large_tiles_where_they_occupy_the_device():
    assert occupies(512, 65536, 128, 32, 132)  # 4 blocks x 256 shares of 8 tiles
    assert not occupies(512, 8192, 128, 32, 132)  # 4 x 32
    assert not occupies(100, 1 << 20, 128, 32, 132)  # most of a block would be empty
    assert occupies(132 * 128, 5, 128, 32, 132)


def test_the_processors_are_those_of_the_device(monkeypatch):
    asked = []

    def properties(device):
        asked.append(device)
        return type("Properties", (), {"multi_processor_count": 77})

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    processors.cache_clear()
    try:
        assert [processors(torch.device("cuda", 1)) for _ in range(2)] == [77, 77]
        assert asked == [torch.device("cuda", 1)]  # once
        assert processors(torch.device("cpu")) == processors(torch.device("cpu"))
    finally:
        processors.cache_clear()
