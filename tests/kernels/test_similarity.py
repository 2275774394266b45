"""similarity and similarity_topk against float64 loops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from clead_kernels import _native, similarity, similarity_topk

pytestmark = pytest.mark.kernels

HALVES = (torch.bfloat16, torch.float16)
ABSENT = pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")


@pytest.fixture(params=["reference", pytest.param("native", marks=ABSENT)])
def impl(request):
    """Every implementation the CPU has."""
    return request.param


def loop(a, b, temperature=1.0, normalize=True):
    """float64 [M, N], one pair at a time."""

    def score(x, y):
        scale = max(math.hypot(*x), 1e-12) * max(math.hypot(*y), 1e-12) if normalize else 1.0
        return sum(p * q for p, q in zip(x, y, strict=True)) / scale / temperature

    rows = [[score(x, y) for y in b.tolist()] for x in a.tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(a), len(b))


def test_hand_numbers(impl):
    a = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-3.0, -4.0]])
    torch.testing.assert_close(similarity(a, b, impl=impl), torch.tensor([[0.6, 0.8, -1.0], [0.0, 1.0, -0.8]]))
    dots = torch.tensor([[3.0, 20.0, -25.0], [0.0, 10.0, -8.0]]) / 0.5
    torch.testing.assert_close(similarity(a, b, temperature=0.5, normalize=False, impl=impl), dots)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (2, 7, 3), (7, 1, 2), (5, 4, 33), (0, 3, 2), (3, 0, 2)])
def test_matches_the_loop(randn, m, n, d, normalize, impl):
    a, b = randn(m, d, seed=1), randn(n, d, seed=2)
    torch.testing.assert_close(
        similarity(a, b, temperature=0.3, normalize=normalize, impl=impl), loop(a, b, 0.3, normalize)
    )


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_rounds_once(randn, dtype, impl):
    a, b = randn(9, 20, dtype=dtype, seed=1), randn(8, 20, dtype=dtype, seed=2)
    got = similarity(a, b, temperature=0.2, impl=impl)
    assert got.dtype == dtype
    # One rounding of the result (values up to 5) plus float32 arithmetic.
    assert (got.double() - loop(a, b, 0.2)).abs().max() <= 5 * (torch.finfo(dtype).eps / 2 + 5e-7)


def test_batches_broadcast_as_in_matmul(randn, impl):
    a, b = randn(2, 1, 4, 3, seed=1, grad=True), randn(5, 6, 3, seed=2, grad=True)
    got = similarity(a, b, impl=impl)
    assert got.shape == (2, 5, 4, 6)
    for i in range(2):
        for j in range(5):
            torch.testing.assert_close(got[i, j], loop(a[i, 0], b[j]))
    assert torch.autograd.gradcheck(partial(similarity, impl=impl), (a, b))


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients(randn, normalize, impl):
    a, b = randn(4, 3, seed=1, grad=True), randn(5, 3, seed=2, grad=True)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def scores(a, b, temperature):
        return similarity(a, b, temperature=temperature, normalize=normalize, impl=impl)

    assert torch.autograd.gradcheck(scores, (a, b, temperature))
    scores(a, b, temperature).sum().backward()
    # s = c / t, so ds/dt = -s / t.
    torch.testing.assert_close(temperature.grad, -(loop(a, b, 0.7, normalize) / 0.7).sum())


def test_gradients_have_the_dtype_of_the_input(randn, impl):
    temperature = torch.tensor(0.5, requires_grad=True)
    a = randn(4, 3, dtype=torch.bfloat16, grad=True)
    similarity(a, a, temperature=temperature, impl=impl).sum().backward()
    assert (a.grad.dtype, temperature.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_zero_rows_have_cosine_0_and_gradient_0(randn, dtype, impl):
    a = randn(3, 4, dtype=dtype)
    a[1] = 0
    a.requires_grad_()
    got = similarity(a, a, impl=impl)
    assert (got[1] == 0).all()
    assert (got[:, 1] == 0).all()
    got.square().sum().backward()
    assert (a.grad[1] == 0).all()
    assert a.grad.isfinite().all()


def test_tiny_rows_follow_normalize(randn, impl):
    a = randn(3, 4)
    a[1] *= 1e-11 / a[1].norm()
    a[2] *= 1e-13 / a[2].norm()
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    b, weights = randn(5, 4, seed=1), randn(3, 5, seed=3)
    got, expected = similarity(ours, b, impl=impl), F.normalize(theirs) @ F.normalize(b).T
    torch.testing.assert_close(got, expected)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad[:2], theirs.grad[:2])
    assert (ours.grad[2] == 0).all()


def test_non_contiguous_inputs(randn, impl):
    a, b = randn(3, 8).T, randn(5, 6)[:, ::2]
    torch.testing.assert_close(similarity(a, b, impl=impl), loop(a, b))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_matches_sorting_the_loop(randn, k, normalize, impl):
    queries, bank = randn(5, 4, seed=1), randn(7, 4, seed=2)
    values, indices = similarity_topk(queries, bank, k, normalize=normalize, impl=impl)
    scores = loop(queries, bank, 1.0, normalize).tolist()
    for row, scored in enumerate(scores):
        order = sorted(range(7), key=lambda j, scored=scored: -scored[j])[:k]
        assert indices[row].tolist() == order
        assert values[row].tolist() == pytest.approx([scored[j] for j in order])


def test_topk_shapes_types_and_duplicates(randn, impl):
    bank = torch.cat([torch.ones(4, 3), -torch.ones(2, 3)]).bfloat16()
    values, indices = similarity_topk(torch.ones(2, 3).bfloat16(), bank, 5, impl=impl)
    assert (values.dtype, indices.dtype) == (torch.bfloat16, torch.int64)
    assert values[0].tolist() == [1, 1, 1, 1, -1]
    assert sorted(indices[0, :4].tolist()) == [0, 1, 2, 3]
    values, indices = similarity_topk(randn(0, 3), randn(4, 3), 2, impl=impl)
    assert values.shape == indices.shape == (0, 2)


def test_topk_in_pieces_is_the_same(randn, monkeypatch):
    from clead_kernels.similarity import reference

    queries, bank = randn(11, 4, seed=1), randn(7, 4, seed=2)
    whole = similarity_topk(queries, bank, 3, impl="reference")
    monkeypatch.setattr(reference, "_TOPK_SCORES", 20)
    torch.testing.assert_close(similarity_topk(queries, bank, 3, impl="reference"), whole)


def test_topk_carries_no_gradient(randn, impl):
    values, _ = similarity_topk(randn(3, 2, grad=True), randn(4, 2, grad=True), 2, impl=impl)
    assert not values.requires_grad


def test_autocast_does_not_touch_it(randn, impl):
    a, b = randn(5, 40, dtype=torch.float32, seed=1, grad=True), randn(6, 40, dtype=torch.float32, seed=2)
    plain = similarity(a, b, impl=impl)
    (gradient,) = torch.autograd.grad(plain.square().sum(), a)
    with torch.autocast("cpu", torch.bfloat16):
        cast = similarity(a, b, impl=impl)
        values, _ = similarity_topk(a, b, 6, impl=impl)
    assert torch.equal(cast, plain)
    assert torch.equal(values, plain.detach().sort(1, descending=True).values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.autograd.grad(cast.square().sum(), a)[0], gradient)


def test_second_derivative_is_refused_in_one_sentence(randn, impl):
    a = randn(3, 2, grad=True)
    (first,) = torch.autograd.grad(similarity(a, a, impl=impl).square().sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(randn, dtype, impl):
    a, b = randn(4, 3, dtype=dtype, seed=1, grad=True), randn(2, 5, 3, dtype=dtype, seed=2, grad=True)
    temperature = torch.tensor(0.5, requires_grad=True)
    ops = torch.ops.clead
    opcheck(ops.similarity.default, (a, b, temperature, 0.0, True, impl))
    opcheck(ops.similarity.default, (a, b, None, 0.3, False, impl))
    plain = (randn(2, 4, 5, dtype=dtype), a.detach(), b.detach())
    for needs in ([True, True, True], [False, True, False]):
        opcheck(ops.similarity_backward.default, (*plain, temperature.detach(), 0.0, True, impl, needs))
    opcheck(ops.similarity_backward.default, (*plain, None, 0.3, False, impl, [True, True, False]))
    opcheck(ops.similarity_topk.default, (a.detach(), b[0].detach(), 2, True, impl))


def test_compiles_without_graph_breaks(randn, impl):
    a, b = randn(4, 3, seed=1, grad=True), randn(5, 3, seed=2, grad=True)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def score(a, b, temperature):
        return (
            similarity(a, b, temperature=temperature, impl=impl).square().sum()
            + similarity_topk(a, b, 2, impl=impl)[0].sum()
        )

    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b, temperature), score(a, b, temperature))
    inputs = (a, b, temperature)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(score(*inputs), inputs)
    )


A, B = torch.ones(3, 2), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: similarity([1.0], B), TypeError, "a must be a tensor, got list"),
        (lambda: similarity(A, B.int()), TypeError, "b must be float64, .* got int32"),
        (lambda: similarity(A[0], B), ValueError, r"a must have shape \[..., rows, d\], got \[2\]"),
        (lambda: similarity(A, torch.ones(4, 3)), ValueError, r"same last dimension, got \[3, 2\] and \[4, 3\]"),
        (lambda: similarity(A, B.double()), TypeError, "same dtype, got float32 and float64"),
        (lambda: similarity(A, B.to("meta")), ValueError, "same device, got cpu and meta"),
        (lambda: similarity(A.expand(2, 3, 2), B.expand(3, 4, 2)), ValueError, "leading dimensions that broadcast"),
        (lambda: similarity(A, B, temperature=0.0), ValueError, "temperature must be positive and finite, got 0.0"),
        (lambda: similarity(A, B, temperature=float("nan")), ValueError, "temperature must be positive.*got nan"),
        (lambda: similarity(A, B, temperature=torch.tensor(-1.0)), ValueError, "temperature must be pos.*got -1.0"),
        (lambda: similarity(A, B, temperature=torch.ones(1)), ValueError, r"0-d floating-point tensor, got \[1\]"),
        (lambda: similarity(A, B, temperature="0.1"), TypeError, "temperature must be a float or .*, got str"),
        (lambda: similarity(A, B, impl="triton"), NotImplementedError, "impl='triton' cannot run similarity on cpu"),
        (lambda: similarity_topk(A, B, 5), ValueError, r"k must be in \[1, 4\], got 5"),
        (lambda: similarity_topk(A, B, 0), ValueError, r"k must be in \[1, 4\], got 0"),
        (lambda: similarity_topk(A, B, 1.0), TypeError, "k must be an integer, got float"),
        (lambda: similarity_topk(A.expand(2, 3, 2), B, 1), ValueError, r"queries must have shape \[rows, d\]"),
        (lambda: similarity_topk(A, B, 1, impl="triton"), NotImplementedError, "cannot run similarity_topk"),
    ],
)
def test_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
