"""Numerics of the similarity Triton kernels, interpreted: ``test_contrastive_triton.py`` runs this in a child process.

Truth is float64. The interpreter sorts element by element, so the search gets small tiles here; several of them.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import explain, similarity, similarity_topk
from clead_kernels._triton_rows import Config
from clead_kernels.similarity import triton

HALVES = [torch.bfloat16, torch.float16]


def data(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def plain(a, b, temperature, normalize):
    a, b = (F.normalize(a, dim=-1), F.normalize(b, dim=-1)) if normalize else (a, b)
    return a @ b.mT / temperature


def measure(score, a, b, temperature, dtype):
    """Scores and the gradients of their weighted sum w.r.t. both sets and the temperature, in float64."""
    a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    out = score(a, b, t)
    # 1/64 steps from -1 to 1: exact in every dtype.
    weights = ((torch.arange(out.numel()) * 37 % 129 - 64) / 64).view(out.shape).to(dtype)
    return [out.detach().double(), *(grad.double() for grad in torch.autograd.grad(out, (a, b, t), weights))]


def error(got, truth):
    assert got.isfinite().all()
    return float((got - truth).norm() / truth.norm())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize(("m", "n", "d"), [(1, 2, 1), (70, 131, 33), (3, 65, 128)])
def test_float32(m, n, d, learnable, normalize):
    a, b = data(m, d, seed=1), data(n, d, seed=2)
    truth = measure(lambda a, b, t: plain(a, b, t, normalize), a, b, 0.3, torch.float64)

    def ours(a, b, t):
        scores = similarity(a, b, temperature=t if learnable else 0.3, normalize=normalize, impl="triton")
        return scores if learnable else scores + 0 * t

    got = measure(ours, a, b, 0.3, torch.float32)
    for x, y in zip(got[: 4 if learnable else 3], truth, strict=False):
        if d == 1 and normalize and x.shape in (a.shape, b.shape):
            assert float(x.abs().max()) < 1e-5  # of one dimension, nothing remains
        else:
            assert error(x, y) < 1e-6


@pytest.mark.parametrize("dtype", HALVES)
def test_half_inputs(dtype):
    a, b = data(40, 33, dtype=dtype, seed=1), data(67, 33, dtype=dtype, seed=2)
    truth = measure(lambda a, b, t: plain(a, b, t, True), a.double(), b.double(), 0.25, torch.float64)
    got = measure(lambda a, b, t: similarity(a, b, temperature=t, impl="triton"), a, b, 0.25, dtype)
    for x, y in zip(got[:3], truth, strict=False):
        assert error(x, y) < torch.finfo(dtype).eps
    assert error(got[3], truth[3]) < torch.finfo(dtype).eps


@pytest.mark.parametrize("shapes", [((2, 1, 5, 7), (3, 6, 7)), ((4, 5, 7), (6, 7)), ((1, 5, 7), (4, 6, 7))])
def test_batches_broadcast_as_in_matmul(shapes):
    a, b = (data(*shape, seed=i) for i, shape in enumerate(shapes))
    truth = measure(lambda a, b, t: plain(a, b, t, True), a, b, 0.5, torch.float64)
    got = measure(lambda a, b, t: similarity(a, b, temperature=t, impl="triton"), a, b, 0.5, torch.float32)
    for x, y in zip(got, truth, strict=True):
        assert x.shape == y.shape
        assert error(x, y) < 1e-6


def test_zero_and_tiny_rows():
    a = data(3, 4)
    a[1] = 0
    a[2] *= 1e-13 / a[2].norm()
    a.requires_grad_()
    scores = similarity(a, data(5, 4, seed=1), impl="triton")
    assert (scores[1] == 0).all()
    (gradient,) = torch.autograd.grad(scores.square().sum(), a)
    assert (gradient[1:] == 0).all() and gradient.isfinite().all()


def test_empty_sides_and_non_contiguous_ones():
    assert similarity(torch.ones(0, 3), torch.ones(4, 3), impl="triton").shape == (0, 4)
    a, b = data(33, 5).T, data(6, 66)[:, ::2]
    got = similarity(a, b, impl="triton")
    assert error(got.double(), plain(a.double(), b.double(), 1.0, True)) < 1e-6
    a = data(2, 3).requires_grad_()
    similarity(a, torch.ones(0, 3), impl="triton").sum().backward()
    assert (a.grad == 0).all()


@pytest.fixture
def small_tiles(monkeypatch):
    for key in triton.TOPK:
        monkeypatch.setitem(triton.TOPK, key, Config(2, key[0], 16, 4, 1))
    monkeypatch.setattr(triton, "processors", lambda device: 3)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("dtype", "normalize"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (5, 75)])
def test_topk(k, n, dtype, normalize):
    queries, bank = data(3, 19, dtype=dtype, seed=1), data(n, 19, dtype=dtype, seed=2)
    values, indices = similarity_topk(queries, bank, k, normalize=normalize, impl="triton")
    order = plain(queries.double(), bank.double(), 1.0, normalize).sort(1, descending=True)
    assert torch.equal(indices, order.indices[:, :k])
    # The interpreter rounds to bfloat16 towards zero, chips to nearest.
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(values.double(), order.values[:, :k], rtol=tolerance, atol=1e-6)


def test_topk_takes_larger_tiles_for_many_rows(monkeypatch):
    monkeypatch.setattr(triton, "processors", lambda device: 1)
    monkeypatch.setitem(triton.TOPK, (16, "float32"), None)
    monkeypatch.setitem(triton.TOPK_MANY, (16, "float32"), Config(4, 16, 16, 4, 1))
    queries, bank = data(6, 19, seed=1), data(40, 19, seed=2)
    values, indices = similarity_topk(queries, bank, 5, impl="triton")
    order = plain(queries.double(), bank.double(), 1.0, True).sort(1, descending=True)
    assert torch.equal(indices, order.indices[:, :5])
    torch.testing.assert_close(values.double(), order.values[:, :5], rtol=1e-6, atol=1e-6)
    with pytest.raises(AttributeError):  # fewer than a tile: the other table, which this test emptied
        similarity_topk(queries[:3], bank, 5, impl="triton")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.slow
@pytest.mark.parametrize(("k", "n"), [(17, 140), (64, 64), (200, 300)])
def test_topk_of_many(k, n):
    test_topk(k, n, torch.float32, True)


@pytest.mark.usefixtures("small_tiles")
def test_topk_takes_the_first_of_equal_rows_and_nan_before_all():
    bank = torch.tensor([[0.0], [2.0], [-0.0], [1.0], [2.0], [-3.0], [1.0]]).repeat(6, 1)
    values, indices = similarity_topk(torch.tensor([[1.0]]), bank, 40, normalize=False, impl="triton")
    expected = sorted(range(42), key=lambda j: (-bank[j, 0].item(), j))[:40]
    assert indices[0].tolist() == expected
    assert values[0].tolist() == [bank[j, 0].item() for j in expected]
    bank[9] = torch.nan
    values, indices = similarity_topk(torch.tensor([[1.0]]), bank, 2, normalize=False, impl="triton")
    assert indices[0].tolist() == [9, 1]
    assert values[0, 0].isnan()


def test_what_is_not_supported_is_refused_with_the_row_of_the_table():
    x = torch.ones(300, 8)
    with pytest.raises(NotImplementedError, match=r"k=above 256.*triton \(cpu; .*k up to 256"):
        similarity_topk(x, x, 257, impl="triton")
    with pytest.raises(NotImplementedError, match="width=above 512"):
        similarity(torch.ones(4, 513), torch.ones(4, 513), impl="triton")
    with pytest.raises(NotImplementedError, match="float64"):
        similarity(x.double(), x.double(), impl="triton")


def test_the_interpreter_is_never_the_automatic_choice():
    assert not explain("similarity").startswith("similarity on cpu float32: triton")
