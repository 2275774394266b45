"""Philox against the published known answers, and the promises its users rely on."""

from __future__ import annotations

import math

import pytest
import torch

from clead_kernels import philox

pytestmark = pytest.mark.kernels

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES), (ONES, ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(key, counter, answer):
    words = philox.philox4x32(key[1] << 32 | key[0], tuple(torch.tensor(word) for word in counter))
    assert tuple(int(word) for word in words) == answer


def scalar_philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The cipher in plain Python integers, from the paper's figure."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & ONES, key >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & ONES, (p0 >> 32) ^ c3 ^ k1, p0 & ONES
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return c0, c1, c2, c3


def test_counter_layout_is_draw_sample_view_step():
    key, step = 0xDEADBEEF_01234567, 9
    samples, views = [0, 5, 4_000_000_000], [0, 3, 1]
    ids = torch.tensor([view << 32 | sample for sample, view in zip(samples, views, strict=True)])
    words = philox.random_words(key, ids, 6, step=step)
    for row, (sample, view) in enumerate(zip(samples, views, strict=True)):
        expected = [scalar_philox(key, (draw // 4, sample, view, step))[draw % 4] for draw in range(6)]
        assert words[row].tolist() == expected


def test_a_sample_gets_the_same_words_in_any_batch_and_for_any_number_of_draws():
    ids = torch.arange(100)
    whole = philox.random_words(7, ids, 10)
    assert torch.equal(philox.random_words(7, ids[37:41], 10), whole[37:41])
    assert torch.equal(philox.random_words(7, ids, 3), whole[:, :3])
    assert philox.random_words(7, ids[:0], 3).shape == (0, 3)


def test_key_step_view_and_sample_all_matter():
    ids = torch.arange(50)
    base = philox.random_words(7, ids, 4)
    for other in (
        philox.random_words(8, ids, 4),
        philox.random_words(7 | 1 << 32, ids, 4),
        philox.random_words(7, ids, 4, step=1),
        philox.random_words(7, ids | 1 << 32, 4),
        philox.random_words(7, ids + 50, 4),
    ):
        assert not (base == other).any()


def test_uniform_is_uniform():
    u = philox.uniform(3, torch.arange(2000), 50)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    # Five standard errors: of the mean, of the variance, and of each of 64 bins.
    n = u.numel()
    assert abs(u.double().mean() - 1 / 2) < 5 / math.sqrt(12 * n)
    assert abs(u.double().var() - 1 / 12) < 5 / math.sqrt(180 * n)
    bins = torch.histc(u, 64, 0, 1).double()
    assert (bins - n / 64).abs().max() < 5 * math.sqrt(n / 64)
    # Neighbouring samples and neighbouring draws are uncorrelated.
    centred = u.double() - 1 / 2
    assert abs((centred[1:] * centred[:-1]).mean()) * 12 < 5 / math.sqrt(n)
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) * 12 < 5 / math.sqrt(n)


def test_uniform_is_the_top_24_bits():
    ids = torch.arange(20)
    words = philox.random_words(3, ids, 5)
    expected = [[(word >> 8) / 2**24 for word in row] for row in words.tolist()]
    assert philox.uniform(3, ids, 5).tolist() == expected
