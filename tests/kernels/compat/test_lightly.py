"""lightly's loss against loops over its documented formula, and against the library itself where it is installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clead_kernels.compat.lightly import NTXentLoss

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def unit(x):
    return F.normalize(x, dim=1)


def views(out0, out1, temperature=0.5):
    """Row i among all rows of both views but itself."""
    z, n = unit(torch.cat([out0, out1])), len(out0)
    losses = []
    for i in range(2 * n):
        s = torch.stack([(z[i] * z[j]).sum() / temperature for j in range(2 * n)])
        losses.append(s[[j for j in range(2 * n) if j != i]].logsumexp(0) - s[(i + n) % (2 * n)])
    return torch.stack(losses).mean()


def queue(out0, out1, bank, temperature=0.5):
    """Row i of ``out0`` picks row i of ``out1`` among it and the bank; the rest of the batch is no part of it."""
    losses = []
    for a, p in zip(unit(out0), unit(out1), strict=True):
        s = torch.stack([(a * p).sum(), *((a * b).sum() for b in unit(bank))]) / temperature
        losses.append(s.logsumexp(0) - s[0])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_views(randn, agrees, dtype):
    agrees(NTXentLoss(), views, randn(6, 5), randn(6, 5, seed=1), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_bank(randn, agrees, dtype):
    loss = NTXentLoss(temperature=0.2, memory_bank_size=(7, 5))
    bank = loss.bank.to(dtype).double()
    agrees(loss, lambda x, y: queue(x, y, bank, 0.2), randn(3, 5), randn(3, 5, seed=1), dtype=dtype)


@pytest.mark.parametrize("bank", [0, (7, 5)])
def test_a_learnable_temperature_gets_its_gradient(randn, agrees, bank):
    rows = NTXentLoss(memory_bank_size=bank).bank.double()

    def ours(x, y, t):
        loss = NTXentLoss(t, memory_bank_size=bank)
        loss.bank = rows.clone()
        return loss(x, y)

    truth = (lambda x, y, t: queue(x, y, rows, t)) if bank else views
    agrees(ours, truth, randn(3, 5), randn(3, 5, seed=1), torch.tensor(0.3))


def test_the_bank_takes_in_the_second_view_and_is_cut_at_its_end(randn):
    loss = NTXentLoss(memory_bank_size=(7, 5)).double()
    expected = loss.bank.clone()
    assert torch.allclose(expected.norm(dim=1), torch.ones(7, dtype=torch.float64))
    # The third batch has one row left; the fourth starts over.
    for step, place in enumerate([slice(0, 3), slice(3, 6), slice(6, 7), slice(0, 3)]):
        out1 = randn(3, 5, seed=step)
        loss(randn(3, 5, seed=9, grad=True), out1)
        expected[place] = unit(out1)[: place.stop - place.start]
        assert torch.allclose(loss.bank, expected)


def test_evaluation_leaves_the_bank_alone(randn):
    loss = NTXentLoss(memory_bank_size=(7, 5))
    before = loss.bank.clone()
    loss(randn(3, 5), randn(3, 5, grad=True))
    assert torch.equal(loss.bank, before) and not loss.state_dict()


@pytest.mark.parametrize("size", [4, (4,), (-1, 5), (4, 5, 6)])
def test_wrong_bank(size):
    with pytest.raises(ValueError, match=r"memory_bank_size must be 0 or \(rows, dimensions\), got"):
        NTXentLoss(memory_bank_size=size)


def test_wrong_shapes(randn):
    with pytest.raises(ValueError, match=r"out0 and out1 must have the same shape, got \[3, 5\] and \[4, 5\]"):
        NTXentLoss()(randn(3, 5), randn(4, 5))
    with pytest.raises(ValueError, match=r"out1 must be \[B, 6\] like the bank, got \[3, 5\]"):
        NTXentLoss(memory_bank_size=(4, 6))(randn(3, 5), randn(3, 5))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [0, (7, 5)])
def test_the_library_agrees(randn, agrees, size):
    library = pytest.importorskip("lightly.loss.ntx_ent_loss")
    torch.manual_seed(0)
    ours = NTXentLoss(0.3, size).double()
    torch.manual_seed(0)
    theirs = library.NTXentLoss(0.3, size).double()
    for bank in (ours.bank, theirs.memory_bank.bank) if size else ():
        bank.copy_(unit(bank))  # they were unit rows in float32, and only we normalise again
    for step in range(4):
        agrees(ours, theirs, randn(3, 5, seed=step), randn(3, 5, seed=step + 9))
