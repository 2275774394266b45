"""The drop-ins in two processes: each has half of the rows, and together they are one process with all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import distributed

import clead_kernels

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch without gloo"),
]
SCRIPT = Path(__file__).with_name("two_processes.py")
N = 3  # rows per process


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2 * N, 5, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    """Of each rank: name -> (loss, gradient of x, gradient of y)."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save([[half.clone() for half in rows[:, rank * N : (rank + 1) * N]] for rank in (0, 1)], folder / "rows.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(clead_kernels.__file__).parents[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), folder], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert [process.returncode for process in ranks] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def unit(x):
    return F.normalize(x, dim=1)


def log_odds(logits, positives):
    """``log sum_j exp(s_ij) - s_ip`` of every row."""
    return logits.logsumexp(1) - logits.gather(1, positives[:, None])[:, 0]


def lightly(x, y):
    z = unit(torch.cat([x, y]))
    logits = (z @ z.t() / 0.5).masked_fill(torch.eye(4 * N, dtype=torch.bool), -torch.inf)
    return log_odds(logits, torch.arange(4 * N).roll(2 * N))


def clip(x, y):
    logits, own = 3.0 * x @ y.t(), torch.arange(2 * N)
    return (log_odds(logits, own) + log_odds(logits.t(), own)) / 2


def ranking(x, y):
    x, y, z = unit(x), unit(y), unit(y.flip(1))
    own, itself = torch.arange(2 * N), torch.eye(2 * N, dtype=torch.bool)
    logits = torch.cat(
        [
            x @ torch.cat([y, z]).t(),
            (x @ x.t()).masked_fill(itself, -torch.inf),
            y @ x.t(),
            (y @ torch.cat([y, z]).t()).masked_fill(itself.repeat(1, 2), -torch.inf),
        ],
        1,
    )
    return log_odds(3.0 * logits, own)


def whole(loss, rows):
    """The rows' losses of one process with everything, and the gradients of their mean, halved by rank."""
    x, y = (part.clone().requires_grad_() for part in rows)
    losses = loss(x, y)
    losses.mean().backward()
    return losses.detach(), [(x.grad[rank * N : (rank + 1) * N], y.grad[rank * N : (rank + 1) * N]) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("name", "truth"),
    [("lightly", lightly), ("open_clip True True", clip), ("sentence_transformers", ranking)],
)
def test_a_rank_has_the_losses_of_its_rows_and_gradients_from_all_ranks(rows, found, name, truth):
    losses, grads = whole(truth, rows)
    of_ranks = losses.reshape(-1, 2, N).mean((0, 2))
    for rank in (0, 1):
        value, *of_rows = found[rank][name]
        assert value.item() == pytest.approx(of_ranks[rank].item(), rel=1e-11)
        # The sum of both ranks' losses is twice the mean of all rows.
        for grad, expected in zip(of_rows, grads[rank], strict=True):
            assert torch.allclose(grad, 2 * expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("name", "factor"), [("open_clip False True", 2), ("open_clip False False", 1)])
def test_the_full_clip_loss_on_every_rank(rows, found, name, factor):
    losses, grads = whole(clip, rows)
    for rank in (0, 1):
        value, *of_rows = found[rank][name]
        assert value.item() == pytest.approx(losses.mean().item(), rel=1e-11)
        for grad, expected in zip(of_rows, grads[rank], strict=True):
            assert torch.allclose(grad, factor * expected, rtol=1e-9, atol=1e-13)


def test_the_local_clip_loss_without_gradients_of_gathered_rows(rows, found):
    for rank in (0, 1):
        x, y = (part[rank * N : (rank + 1) * N].clone().requires_grad_() for part in rows)
        own = torch.arange(N) + rank * N
        loss = (log_odds(3.0 * x @ rows[1].t(), own) + log_odds(3.0 * y @ rows[0].t(), own)).mean() / 2
        loss.backward()
        value, *of_rows = found[rank]["open_clip True False"]
        assert value.item() == pytest.approx(loss.item(), rel=1e-11)
        for grad, expected in zip(of_rows, (x.grad, y.grad), strict=True):
            assert torch.allclose(grad, expected, rtol=1e-9, atol=1e-13)


def test_the_bank_takes_in_the_rows_of_all_ranks(rows, found):
    bank = torch.eye(7, 5, dtype=torch.float64)
    for rank in (0, 1):
        x, y = (unit(part[rank * N : (rank + 1) * N]) for part in rows)
        logits = torch.cat([(x * y).sum(1, keepdim=True), x @ bank.t()], 1) / 0.5
        expected = log_odds(logits, torch.zeros(N, dtype=torch.int64)).mean()
        assert found[rank]["lightly, bank"][0].item() == pytest.approx(expected.item(), rel=1e-11)
        after = unit(rows[1]).sum() + bank[2 * N :].sum()
        assert found[rank]["bank afterwards"][0].item() == pytest.approx(after.item(), rel=1e-11)
