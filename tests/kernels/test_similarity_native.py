"""similarity and similarity_topk in C++: the numerical bar, ties, segments and groups, threads, instruction sets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import _native, similarity, similarity_topk
from clead_kernels.similarity import native

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}"),
]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEEDS = range(5)


@pytest.fixture
def threads():
    """``torch.set_num_threads``, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trits(*shape, seed=0):
    """-1, 0 and 1: dots are small integers, exact in every dtype, and most of them are tied."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed))


def eager(a, b, temperature):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT / temperature


def differentiate(scores_of, leaves, upstream):
    """Scores and the gradients w.r.t. a, b and the temperature, in float64."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    scores = scores_of(*leaves)
    grads = torch.autograd.grad(scores, leaves, upstream.to(scores.dtype))
    return [x.detach().double() for x in (scores, *grads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [((65, 33), (130, 33)), ((200, 128), (70, 128)), ((3, 9, 20), (1, 17, 20))])
def test_numerical_bar(monkeypatch, shape, dtype):
    """contracts.md section 8, against eager PyTorch in the same dtype; errors pooled over the seeds."""
    monkeypatch.setattr(native, "_PIECE", 1)  # as few rows at a time as there can be
    errors = {"ours": [], "eager": [], "truth": []}
    for seed in SEEDS:
        a, b = (numbers(*size, seed=2 * seed + i, dtype=dtype) * (1 + 3 * i) for i, size in enumerate(shape))
        upstream = numbers(*eager(a, b, 1).shape, seed=99 + seed, dtype=dtype)
        scale = torch.tensor(0.2)
        doors = {"ours": lambda a, b, t: similarity(a, b, temperature=t, impl="native"), "eager": eager}
        truth = differentiate(eager, (a.double(), b.double(), scale.double()), upstream)
        errors["truth"].append(truth)
        for name, door in doors.items():
            got = differentiate(door, (a, b, scale.to(dtype if name == "eager" else torch.float32)), upstream)
            errors[name].append([x - y for x, y in zip(got, truth, strict=True)])
    pooled = {name: [torch.stack(parts) for parts in zip(*lists, strict=True)] for name, lists in errors.items()}
    unit = torch.finfo(dtype).eps / 2
    for ours, theirs, truth in zip(*pooled.values(), strict=True):
        assert ours.norm() <= max(1.5 * theirs.norm(), 8 * unit * truth.norm())
        assert ours.abs().max() <= max(2 * theirs.abs().max(), 16 * unit * truth.abs().max())


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, True), (False, False, True)])
@pytest.mark.parametrize("size", [(300, 70), (70, 300)])
def test_gradients_one_by_one(monkeypatch, size, needs):
    monkeypatch.setattr(native, "_PIECE", 1)
    a, b = numbers(size[0], 9, dtype=torch.bfloat16), numbers(size[1], 9, seed=1, dtype=torch.bfloat16)
    leaves = [x.requires_grad_(need) for x, need in zip((a, b, torch.tensor(0.3)), needs, strict=True)]
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in leaves]
    upstream = numbers(*size, seed=2, dtype=torch.bfloat16)
    asked = [[x for x in xs if x.requires_grad] for xs in (leaves, wide)]
    ours = torch.autograd.grad(
        similarity(*leaves[:2], temperature=leaves[2], normalize=False, impl="native"), asked[0], upstream
    )
    truth = torch.autograd.grad(wide[0] @ wide[1].T / wide[2], asked[1], upstream.double())
    for mine, exact in zip(ours, truth, strict=True):
        assert (mine.double() - exact).norm() <= torch.finfo(mine.dtype).eps * exact.norm()


def check_ties(m, n, d, k, dtype):
    """All values and indices, exactly: integers, sorted by score and then by index."""
    queries, bank = trits(m, d, seed=m), trits(n, d, seed=n + 1)
    scores, order = torch.sort(queries @ bank.T, dim=1, descending=True, stable=True)
    values, indices = similarity_topk(queries.to(dtype), bank.to(dtype), k, normalize=False, impl="native")
    assert torch.equal(values.long(), scores[:, :k])
    assert torch.equal(indices, order[:, :k])


SHAPES = [(1, 1, 1, 1), (2, 7, 3, 7), (13, 97, 33, 5), (97, 300, 128, 300), (1, 9001, 5, 40), (1000, 200, 17, 3)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "d", "k"), SHAPES)
def test_equal_values_come_by_index(m, n, d, k, dtype):
    check_ties(m, n, d, k, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_values_at_all_sizes(dtype):
    for m in (1, 2, 31, 96, 97, 961, 2000):
        for n in (1, 2, 95, 96, 97, 1000, 9000):
            for d in (1, 15, 16, 100):
                for k in {1, min(n, 10), min(n, 200), n if m * n < 10**6 else 1}:
                    check_ties(m, n, d, k, dtype)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_and_indices_against_float64(dtype, normalize):
    for m, n, d, k in ((40, 333, 300, 10), (5, 2000, 64, 200), (130, 50, 7, 50)):
        queries, bank = numbers(m, d, dtype=dtype), numbers(n, d, seed=1, dtype=dtype) * 3
        values, indices = similarity_topk(queries, bank, k, normalize=normalize, impl="native")
        rows = [x.double() for x in (queries, bank)]
        q, b = (x / x.norm(dim=1, keepdim=True) for x in rows) if normalize else rows
        scores = q @ b.T
        assert (values[:, 1:] <= values[:, :-1]).all()
        assert (indices.sort(1).values.diff(dim=1) > 0).all()
        bound = 16 * torch.finfo(dtype).eps / 2 * scores.abs().max()
        assert (values.double() - scores.sort(1, descending=True).values[:, :k]).abs().max() <= bound
        assert (values.double() - scores.gather(1, indices)).abs().max() <= bound


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 20000, 7), (3, 9000, 500), (300, 1000, 10)])
def test_the_same_bits_from_one_thread_and_from_several(threads, m, n, k, dtype):
    queries, bank = numbers(m, 40, dtype=dtype), numbers(n, 40, seed=1, dtype=dtype)
    bank[n // 2] = bank[3]
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(similarity_topk(queries, bank, k, impl="native"))
    for values, indices in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(indices, found[0][1])


def test_a_bank_that_gets_better_and_better():
    bank = torch.arange(5000.0)[:, None]
    values, indices = similarity_topk(torch.ones(3, 1), bank, 20, normalize=False, impl="native")
    assert indices.tolist() == [list(range(4999, 4979, -1))] * 3
    assert values.tolist() == [[float(i) for i in range(4999, 4979, -1)]] * 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_the_largest_and_infinities_have_their_place(dtype):
    column = torch.tensor([1.0, -math.inf, math.nan, math.inf, -2.0, math.nan], dtype=dtype)[:, None]
    values, indices = similarity_topk(torch.ones(1, 1, dtype=dtype), column, 6, normalize=False, impl="native")
    assert indices.tolist() == [[2, 5, 3, 0, 4, 1]]
    assert torch.equal(values[0], column[indices[0], 0]) or values[0, :2].isnan().all()
    assert values[0, 2:].tolist() == [math.inf, 1.0, -2.0, -math.inf]
    bank = torch.ones(200, 2, dtype=dtype)
    values, indices = similarity_topk(torch.full((2, 2), math.nan, dtype=dtype), bank, 3, impl="native")
    assert values.isnan().all()
    assert indices.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_rows_score_0(dtype):
    bank = numbers(10, 6, seed=1, dtype=dtype).abs()
    bank[4] = 0
    values, indices = similarity_topk(torch.ones(1, 6, dtype=dtype), bank, 10, impl="native")
    assert (float(values[0, -1]), int(indices[0, -1])) == (0.0, 4)
    values, indices = similarity_topk(torch.zeros(1, 6, dtype=dtype), bank, 4, impl="native")
    assert values.tolist() == [[0.0] * 4]
    assert indices.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("scale", [1e-10, 1e-16, 1e-30, 1e30])
def test_the_scale_of_a_row(scale):
    """The floor of F.normalize in float64, also where squares leave the range of float32."""
    a, b = (numbers(4, 30, seed=seed, dtype=torch.float32) for seed in (0, 1))
    scores = similarity(a * scale, b, impl="native")
    truth = eager((a * scale).double(), b.double(), 1.0)
    torch.testing.assert_close(scores.double(), truth, rtol=1e-5, atol=1e-6 * float(truth.abs().max()))


def test_strides_and_views():
    queries, bank = numbers(12, 9), numbers(14, 100, seed=1)
    for q, b in (
        (queries.T, bank[:, ::9]),
        (queries[::2, :5], bank[3:, 7:12]),
        (queries[:1].expand(4, 9), bank[:, :9]),
    ):
        q, b = (q[:, : min(q.shape[1], b.shape[1])], b[:, : min(q.shape[1], b.shape[1])])
        values, indices = similarity_topk(q, b, 3, impl="native")
        expected = similarity_topk(q.contiguous(), b.contiguous(), 3, impl="native")
        assert torch.equal(values, expected[0])
        assert torch.equal(indices, expected[1])
        torch.testing.assert_close(similarity(q, b, impl="native"), eager(q, b, 1.0))
        torch.testing.assert_close(values, eager(q, b, 1.0).sort(1, descending=True).values[:, :3])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "d"), [(0, 3, 2), (3, 0, 2), (2, 3, 0)])
def test_empty(m, n, d, dtype):
    a, b = torch.ones(m, d, dtype=dtype, requires_grad=True), torch.ones(n, d, dtype=dtype, requires_grad=True)
    scores = similarity(a, b, impl="native")
    assert scores.tolist() == torch.zeros(m, n).tolist()
    assert [g.tolist() for g in torch.autograd.grad(scores.sum(), (a, b))] == [
        torch.zeros_like(x).tolist() for x in (a, b)
    ]
    if n:
        values, indices = similarity_topk(a, b, 2, impl="native")
        assert values.tolist() == [[0.0, 0.0]] * m
        assert indices.tolist() == [[0, 1]] * m


def compare_all():
    """What the instruction sets are held to; run in a process of their own."""
    for dtype in FLOATS:
        for m, n, d, k in SHAPES:
            check_ties(m, n, d, k, dtype)
        test_values_and_indices_against_float64(dtype, True)
        a, b = numbers(9, 75, dtype=dtype), numbers(21, 75, seed=1, dtype=dtype)
        upstream = numbers(9, 21, seed=2, dtype=dtype)
        scale = torch.tensor(0.5, dtype=torch.float64)
        truth = differentiate(eager, (a.double(), b.double(), scale), upstream)
        ours = differentiate(lambda a, b, t: similarity(a, b, temperature=t, impl="native"), (a, b, scale), upstream)
        # The temperature's gradient is a sum of products of either sign.
        sizes = [*(x.norm() for x in truth[:3]), upstream.double().norm() * truth[0].norm() / scale]
        for mine, exact, size in zip(ours, truth, sizes, strict=True):
            assert (mine - exact).norm() <= 8 * torch.finfo(dtype).eps / 2 * size


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, printed_on):
    code = "import test_similarity_native as t; t.compare_all(); print(t._native.build_info()['isa'])"
    assert printed_on(isa, code).split() == [isa]
