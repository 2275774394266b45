"""random_start_: its bits from a scalar Philox, its distribution from closed forms, its independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clead_kernels import random_start_
from clead_kernels.perturb.draws import exponential, gaussian

pytestmark = pytest.mark.kernels

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def word(key, sample, draw, step=0):
    """32-bit word ``draw`` of one sample, in Python integers (Salmon et al. 2011, Philox4x32-10)."""
    m32 = 2**32 - 1
    c = [draw // 4, sample & m32, sample >> 32, step]
    k = [key & m32, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & m32, (p >> 32) ^ c[3] ^ k[1], p & m32]
        k = [(k[0] + 0x9E3779B9) & m32, (k[1] + 0xBB67AE85) & m32]
    return c[draw % 4]


def start(x, **options):
    return random_start_(torch.full_like(x, math.nan), x, **options)


KEY, STEP, EPS = 2**64 - 12345, 7, 8 / 255


def test_linf_bits():
    ids = [3, 2**31, (5 << 32) | 1]
    x = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    ours = start(x, eps=EPS, seed=KEY, step=STEP, sample_ids=torch.tensor(ids))
    eps, wanted = np.float32(EPS), []
    for sample, pixels in zip(ids, x.flatten(1).numpy(), strict=True):
        for draw, pixel in enumerate(pixels):
            u = np.float32(word(KEY, sample, draw, STEP) >> 8) * np.float32(2**-24)
            value = pixel + (np.float32(2) * u - np.float32(1)) * eps
            value = min(max(value, pixel - eps), pixel + eps)
            wanted.append(min(max(value, np.float32(0)), np.float32(1)))
    assert np.array_equal(ours.flatten().numpy(), np.array(wanted))


def test_l2_numbers():
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    ids = [4, 9]
    ours = start(x, eps=0.25, seed=KEY, step=STEP, sample_ids=torch.tensor(ids), norm="l2")
    for row, sample in zip(ours, ids, strict=True):
        words = [word(KEY, sample, draw, STEP) for draw in range(6)]
        z = []
        for first, second in zip(words[::2], words[1::2], strict=True):
            radius, angle = math.sqrt(-2 * math.log((first + 1) / 2**32)), 2 * math.pi * second / 2**32
            z += [radius * math.cos(angle), radius * math.sin(angle)]
        wanted = [0.5 + 0.25 * v / math.hypot(*z[:5]) for v in z[:3]]
        assert row.tolist() == pytest.approx(wanted, abs=1e-5)  # z is in units of 2^-16


def test_l1_numbers():
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    ids = [4, 9]
    ours = start(x, eps=0.25, seed=KEY, step=STEP, sample_ids=torch.tensor(ids), norm="l1")
    for row, sample in zip(ours, ids, strict=True):
        words = [word(KEY, sample, draw, STEP) for draw in range(4)]
        lengths = [-math.log(((w >> 1) + 1) / 2**31) for w in words]
        signs = [-1 if w % 2 else 1 for w in words]
        wanted = [0.5 + 0.25 * s * v / sum(lengths) for s, v in zip(signs[:3], lengths, strict=False)]
        assert row.tolist() == pytest.approx(wanted, abs=1e-9)  # lengths are in units of 2^-32


def test_exponential_series_against_the_library():
    lengths, negative = exponential(KEY, torch.arange(40), 200, step=0)
    for sample in range(0, 40, 8):
        for draw in range(200):
            w = word(KEY, sample, draw)
            assert abs(lengths[sample, draw].item() / 2**32 + math.log(((w >> 1) + 1) / 2**31)) < 3e-10
            assert negative[sample, draw].item() == w % 2


def test_gaussian_series_against_the_library():
    ids = torch.arange(40)
    z = gaussian(KEY, ids, 200, step=0)
    for sample in range(0, 40, 8):
        for draw in range(0, 200, 2):
            u, v = (word(KEY, sample, draw) + 1) / 2**32, word(KEY, sample, draw + 1) / 2**32
            radius = 65536 * math.sqrt(-2 * math.log(u))
            assert abs(z[sample, draw].item() - radius * math.cos(2 * math.pi * v)) <= 0.502
            assert abs(z[sample, draw + 1].item() - radius * math.sin(2 * math.pi * v)) <= 0.502


PINNED_GAUSSIAN = [[24930, -19417, -16334, -65787, 41088]]
PINNED_LINF = ["0x1.27f6680000000p-1", "0x1.286a6c0000000p-1", "0x1.08c7400000000p-1", "0x1.15a2440000000p-1"]
PINNED_L2 = ["0x1.0d72e20000000p-1", "0x1.eb0cf20000000p-2", "0x1.ee607c0000000p-2", "0x1.b905580000000p-2"]


def test_pinned_bits():
    # The same on every machine and in every implementation; a change here changes every experiment.
    assert gaussian(1, torch.tensor([0]), 5, step=0).tolist() == PINNED_GAUSSIAN
    x = torch.full((1, 4), 0.5)
    assert [v.hex() for v in start(x, eps=0.1, seed=1)[0].tolist()] == PINNED_LINF
    assert [v.hex() for v in start(x, eps=0.1, seed=1, norm="l2")[0].tolist()] == PINNED_L2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_independent_of_the_batch(norm, dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(16, 3, 5, 5, generator=generator).to(dtype)
    ids = torch.arange(100, 116) | (torch.arange(16) % 3 << 32)
    whole = start(x, eps=0.3, seed=11, sample_ids=ids, step=2, norm=norm)
    order = torch.randperm(16, generator=generator)
    assert torch.equal(start(x[order], eps=0.3, seed=11, sample_ids=ids[order], step=2, norm=norm), whole[order])
    parts = [
        start(x[i : i + 5], eps=0.3, seed=11, sample_ids=ids[i : i + 5], step=2, norm=norm) for i in range(0, 16, 5)
    ]
    assert torch.equal(torch.cat(parts), whole)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(start(channels_last, eps=0.3, seed=11, sample_ids=ids, step=2, norm=norm), whole)
    per_sample = start(x, eps=torch.full((16,), 0.3), seed=11, sample_ids=ids, step=2, norm=norm)
    # As the float: a float eps meets l2's float64 arithmetic unrounded.
    torch.testing.assert_close(per_sample, whole, rtol=0, atol=0 if norm == "linf" else 1e-2)


@pytest.mark.parametrize("norm", NORMS)
def test_default_ids_and_streams(norm):
    x = torch.full((4, 50), 0.5, dtype=torch.float64)
    base = start(x, eps=0.1, seed=1, norm=norm)
    assert torch.equal(base, start(x, eps=0.1, seed=1, norm=norm, sample_ids=torch.arange(4), step=0))
    others = [
        start(x, eps=0.1, seed=2, norm=norm),
        start(x, eps=0.1, seed=1 + 2**32, norm=norm),
        start(x, eps=0.1, seed=1, norm=norm, step=1),
        start(x, eps=0.1, seed=1, norm=norm, sample_ids=torch.arange(4) | (1 << 32)),
        base.roll(1, 0),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(200)


def largest_gap(samples):
    """The Kolmogorov-Smirnov distance of ``samples`` from the uniform distribution on [0, 1], times √n."""
    n = len(samples)
    ordered, grid = samples.double().sort().values, torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((ordered - grid[:-1]).max(), (grid[1:] - ordered).max()).item()


def test_linf_is_uniform():
    x = torch.full((400, 30), 0.5)
    u = (start(x, eps=0.1, seed=5) - 0.4) / 0.2
    assert largest_gap(u.flatten()) < 1.95  # exceeded once in a thousand seeds
    assert all(largest_gap(u[:, e]) < 2.3 for e in range(30))
    assert abs(u.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / u.numel())


@pytest.mark.parametrize("d", [1, 2, 3, 48])
def test_l2_is_uniform_in_the_ball(d):
    x = torch.zeros(4000, d, dtype=torch.float64)
    delta = start(x, eps=2.0, seed=5, norm="l2", bounds=None)
    radius = delta.norm(dim=1)
    assert (radius <= 2.0 * (1 + 1e-12)).all()
    assert largest_gap((radius / 2.0) ** d) < 1.95
    # Uniform in the ball: mean 0 and covariance eps²/(d + 2) in every direction.
    spread = 2.0 / math.sqrt(d + 2)
    assert (delta.mean(0).abs() < 4.5 * spread / math.sqrt(4000)).all()
    covariance = delta.T @ delta / 4000 / spread**2
    torch.testing.assert_close(covariance, torch.eye(d, dtype=torch.float64), rtol=0, atol=0.1)
    if d == 2:
        angle = torch.atan2(delta[:, 1], delta[:, 0]) / (2 * math.pi) + 0.5
        assert largest_gap(angle) < 1.95


@pytest.mark.parametrize("d", [1, 2, 3, 48])
def test_l1_is_uniform_in_the_ball(d):
    x = torch.zeros(4000, d, dtype=torch.float64)
    delta = start(x, eps=2.0, seed=5, norm="l1", bounds=None)
    radius = delta.norm(p=1, dim=1)
    assert (radius <= 2.0 * (1 + 1e-12)).all()
    assert largest_gap((radius / 2.0) ** d) < 1.95
    # A coordinate of a uniform point of the simplex is Beta(1, d): 1 - (1 - |v|/eps)^d is uniform. Signs are fair.
    assert all(largest_gap(1 - (1 - delta[:, e].abs() / 2.0) ** d) < 2.3 for e in range(d))
    assert abs((delta > 0).double().mean().item() - 0.5) < 2 / math.sqrt(delta.numel())
    # Uncorrelated in sign and, but for the shared sum, in size: covariance 2 eps²/((d + 1)(d + 2)) in every direction.
    covariance = delta.T @ delta / 4000 * (d + 1) * (d + 2) / 8.0
    torch.testing.assert_close(covariance, torch.eye(d, dtype=torch.float64), rtol=0, atol=0.16)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_starts_are_feasible(norm, dtype):
    x = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    eps = torch.linspace(0.0, 3.0, 8)
    y = start(x, eps=eps, seed=3, norm=norm)
    delta = (y.double() - x.double()).flatten(1)
    radius = delta.norm(p=ORDER[norm], dim=1)
    assert (radius <= eps * (1 + 1e-6)).all() and (y >= 0).all() and (y <= 1).all()
    assert torch.equal(y[0], x[0]) and not torch.equal(y[1], x[1])
    if norm == "linf":
        per_channel = start(x, eps=torch.tensor([0.0, 0.1, 0.2]).reshape(3, 1, 1), seed=3)
        assert torch.equal(per_channel[:, 0], x[:, 0]) and (per_channel[:, 2] - x[:, 2]).abs().max() > 0.1


X = torch.full((2, 3), 0.5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"step": -1}, "step must be in"),
        ({"step": 2**32}, "step must be in"),
        ({"sample_ids": torch.arange(3)}, r"sample_ids must be int64 \[2\] on cpu, got torch.int64 \[3\] on cpu"),
        ({"sample_ids": torch.zeros(2)}, "sample_ids must be int64"),
        ({"eps": -1.0}, "eps must be"),
    ],
    ids=lambda value: "",
)
def test_refusals(bad, message):
    with pytest.raises(ValueError, match=message):
        start(X, **({"eps": 0.1, "seed": 1} | bad))
