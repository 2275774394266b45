"""similarity and similarity_topk on a CUDA device in Triton, and the reference of the perturbation operators there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import pgd_step_, project_, random_start_, similarity, similarity_topk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),  # that it is a prototype
]
pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def data(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def plain(a, b, temperature, normalize=True):
    a, b = (F.normalize(a, dim=-1), F.normalize(b, dim=-1)) if normalize else (a, b)
    return a @ b.mT / temperature


def measure(score, a, b, dtype):
    a, b = a.detach().to(dtype).requires_grad_(), b.detach().to(dtype).requires_grad_()
    t = torch.tensor(0.3, dtype=torch.float64, device="cuda", requires_grad=True)
    out = score(a, b, t)
    weights = ((torch.arange(out.numel(), device="cuda") * 37 % 129 - 64) / 64).view(out.shape).to(out.dtype)
    return [out.detach().double(), *(grad.double() for grad in torch.autograd.grad(out, (a, b, t), weights))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 2), (7, 2)),
        ((129, 64), (127, 64)),
        ((1000, 128), (2049, 128)),
        ((65, 300), (130, 300)),
        ((33, 512), (257, 512)),
        ((3, 1, 40, 17), (2, 50, 17)),
        ((4, 40, 17), (50, 17)),
    ],
)
def test_similarity(left, right, normalize, dtype):
    a, b = data(*left, dtype=dtype, seed=1), data(*right, dtype=dtype, seed=2)
    truth = measure(lambda a, b, t: plain(a, b, t, normalize), a, b, torch.float64)
    rival = measure(lambda a, b, t: plain(a, b, t.to(a.dtype), normalize), a, b, dtype)
    got = measure(lambda a, b, t: similarity(a, b, temperature=t, normalize=normalize, impl="triton"), a, b, dtype)
    u = torch.finfo(dtype).eps / 2
    # The temperature's gradient is a sum of weight * score / temperature that nearly cancels.
    scales = [*(float(y.norm()) for y in truth[:3]), float(truth[0].norm()) / 0.3]
    for i, (x, y, z, scale) in enumerate(zip(got, truth, rival, scales, strict=True)):
        assert float((x - y).norm()) <= max(1.5 * float((z - y).norm()), 8 * u * scale), i


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "d", "k"), [(1, 1, 1, 1), (3, 50_000, 128, 10), (1000, 2049, 64, 200), (17, 300, 512, 256)]
)
def test_topk(m, n, d, k, dtype):
    queries, bank = data(m, d, dtype=dtype, seed=1), data(n, d, dtype=dtype, seed=2)
    values, indices = similarity_topk(queries, bank, k, impl="triton")
    cosine = plain(queries.double(), bank.double(), 1.0)
    # Rounding may exchange neighbours, and never by more than it changes them.
    assert (cosine.gather(1, indices) - cosine.topk(k).values).abs().max() < 1e-6
    assert (values.double() - cosine.topk(k).values).abs().max() < torch.finfo(dtype).eps / 2 + 1e-6
    assert all(len(set(row)) == k for row in indices[:20].tolist())
    again = similarity_topk(queries, bank, k, impl="triton")
    assert torch.equal(again[0], values) and torch.equal(again[1], indices)


def test_topk_takes_the_first_of_equal_rows_and_nan_before_all():
    bank = torch.tensor([[0.0], [2.0], [-0.0], [1.0], [2.0], [-3.0], [1.0]], device="cuda").repeat(300, 1)
    _, indices = similarity_topk(torch.ones(1, 1, device="cuda"), bank, 256, normalize=False, impl="triton")
    column = bank[:, 0].tolist()
    order = sorted(range(len(bank)), key=lambda j: (-column[j], j))
    assert indices[0].tolist() == order[:256]
    bank[500] = torch.nan
    _, indices = similarity_topk(torch.ones(1, 1, device="cuda"), bank, 2, normalize=False, impl="triton")
    assert indices[0].tolist() == [500, 1]


def test_topk_holds_no_matrix():
    queries, bank = data(10_000, 16, seed=1), data(50_000, 16, seed=2)
    similarity_topk(queries, bank, 10, impl="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    similarity_topk(queries, bank, 10, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 200e6  # the matrix: 2 GB


def test_nothing_waits_and_a_graph_can_be_made():
    a, b = data(100, 64, seed=1).requires_grad_(), data(200, 64, seed=2).requires_grad_()
    temperature = torch.tensor(0.2, device="cuda", requires_grad=True)

    def once():
        scores = similarity(a, b, temperature=temperature, impl="triton")
        return (
            *torch.autograd.grad(scores.sum(), (a, b, temperature)),
            *similarity_topk(a, b, 5, impl="triton"),
        )

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = once()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = once()
    graph.replay()
    for x, y in zip(captured, expected, strict=True):
        assert torch.equal(x, y)


def test_more_than_2_to_the_31_scores():
    a, b = data(46_400, 8, dtype=torch.float16, seed=1), data(46_400, 8, dtype=torch.float16, seed=2)
    got = similarity(a, b, impl="triton")
    rows = torch.tensor([0, 1, 23_000, 46_398, 46_399], device="cuda")
    torch.testing.assert_close(got[rows].double(), plain(a[rows].double(), b.double(), 1.0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_perturbations_equal_those_of_the_cpu(norm, impl):
    """The CPU's are held to closed forms elsewhere; random numbers are a function of the seed alone."""
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for device, chosen in (("cpu", "reference"), ("cuda", impl)):
        clean, start = x.to(device), x.to(device).clone()
        random_start_(start, clean, eps=0.1, seed=3, norm=norm, impl=chosen)
        steps = [start.cpu()]
        pgd_step_(start, grad.to(device), clean, eps=0.1, step_size=0.05, norm=norm, impl=chosen)
        steps.append(start.cpu())
        project_(start, clean, eps=0.02, norm=norm, impl=chosen)
        results.append([*steps, start.cpu()])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-6)
