"""The kernels for few rows on a CUDA device: what only a device shows. Their numbers: ``test_gpu_contrastive.py``."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con

pytest.importorskip("triton")
from clead_kernels.contrastive import triton_small  # noqa: E402 - imports Triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),  # that it is a prototype
]

WIDTH = 128


def rows(count, dtype=torch.bfloat16, seed=0, width=WIDTH):
    """Two views of each of ``count // 2`` images, at a cosine of about 0.7."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    x[count // 2 :] += x[: count - count // 2]
    return x.to("cuda", dtype).requires_grad_()


def exact(x, temperature=0.1):
    """NT-Xent of two views, and its gradient, in float64."""
    x = x.detach().double().requires_grad_()
    count = len(x)
    z = F.normalize(x)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device="cuda"), -math.inf)
    partner = (torch.arange(count, device="cuda") + count // 2) % count
    loss = F.cross_entropy(logits, partner)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def assert_near(loss, gradient, x, dtype):
    expected, expected_gradient = exact(x)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=2e-6, atol=2e-6)
    error = (gradient.double() - expected_gradient).norm()
    assert float(error) <= (8 * torch.finfo(dtype).eps / 2 + 2e-6) * max(float(expected_gradient.norm()), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_number_of_rows_with_what_was_compiled_for_the_first(dtype):
    """Sizes that are multiples of 16 and that are not, around the tiles and up to the most that is served."""
    for count in (256, 2, 14, 126, 130, 1000, 2048, 2050, 4096):
        x = rows(count, dtype)
        loss = nt_xent(x, temperature=0.1, impl="triton")
        assert_near(loss, torch.autograd.grad(loss, x)[0], x, dtype)


@pytest.mark.parametrize("width", [1, 7, 64, 100, 256])
def test_widths(width):
    x = rows(258, torch.float32, width=width)
    loss = nt_xent(x, temperature=0.1, impl="triton")
    (gradient,) = torch.autograd.grad(loss, x)
    if width > 1:  # of one dimension, no gradient remains
        assert_near(loss, gradient, x, torch.float32)


def test_rows_that_are_not_aligned():
    """Their kernels are other ones: wide loads would fail."""
    aligned = rows(130)
    storage = torch.empty(130 * WIDTH + 1, dtype=torch.bfloat16, device="cuda")
    x = storage[1:].view(130, WIDTH).copy_(aligned.detach()).requires_grad_()
    for y in (aligned, x, aligned, x):
        loss = nt_xent(y, temperature=0.1, impl="triton")
        assert_near(loss, torch.autograd.grad(loss, y)[0], y, torch.bfloat16)


def calls():
    """Door -> (call, its inputs): everything that is to take two launches."""
    a, b, queue = rows(512), rows(512, seed=1), rows(700, seed=2)
    t = torch.tensor(0.1, device="cuda", requires_grad=True)
    labels = torch.arange(512, device="cuda") % 7
    rule = FalseNegatives(threshold=torch.tensor(0.3, device="cuda"), labels=labels)
    return {
        "nt_xent": (lambda: nt_xent(a, impl="triton"), (a,)),
        "nt_xent with rules": (lambda: nt_xent(a, false_negatives=rule, impl="triton"), (a,)),
        "sup_con": (lambda: sup_con(a, labels, temperature=t, reduction="mean_valid", impl="triton"), (a, t)),
        "info_nce": (lambda: info_nce(a, queue, temperature=t, impl="triton"), (a, queue, t)),
        "clip_loss": (lambda: clip_loss(a, b, temperature=t, impl="triton"), (a, b, t)),
        "clip_loss, half of it": (lambda: clip_loss(a, b, impl="triton"), (b,)),
    }


@pytest.mark.parametrize("door", ["nt_xent", "nt_xent with rules", "sup_con", "info_nce", "clip_loss"])
def test_two_launches(door):
    call, inputs = calls()[door]
    upstream = torch.tensor(2.0, device="cuda")
    torch.autograd.grad(call(), inputs, upstream)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.autograd.grad(call(), inputs, upstream)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    names = [name for name in names if name != "Activity Buffer Request"]  # the profiler's own
    assert sorted(names) == ["small_backward_kernel", "small_forward_kernel"]


def test_nothing_waits_for_the_device():
    pairs = list(calls().values())
    for call, inputs in pairs:
        torch.autograd.grad(call(), inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call, inputs in pairs:
            torch.autograd.grad(call(), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("door", ["nt_xent", "sup_con", "info_nce", "clip_loss"])
def test_a_cuda_graph_replays_with_new_inputs(door):
    """Several times, and with an eager call between two replays: both leave their counters as they were."""
    call, inputs = calls()[door]

    def step():
        loss = call()
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(5, 9):
        with torch.no_grad():
            for x in inputs:
                if x.ndim:
                    x.copy_(rows(len(x), seed=seed).detach())
        graph.replay()
        expected = step()
        assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))


def test_streams_do_not_share_a_counter():
    """Two streams and a graph at once, many times: the reduced losses never change."""
    a, b = rows(4096), rows(4096, seed=3)
    expected = [nt_xent(x, impl="triton").detach() for x in (a, b)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = nt_xent(a, impl="triton")
    torch.cuda.synchronize()
    found = []
    for _ in range(50):
        graph.replay()
        for stream, x in zip(streams, (a, b), strict=True):
            with torch.no_grad(), torch.cuda.stream(stream):
                found.append(nt_xent(x, impl="triton"))
    torch.cuda.synchronize()
    assert torch.equal(captured, expected[0])
    assert all(torch.equal(loss, expected[i % 2]) for i, loss in enumerate(found))


@pytest.mark.parametrize("door", ["nt_xent", "info_nce", "clip_loss"])
def test_bitwise_equal_every_time(door):
    call, inputs = calls()[door]
    first, *others = ([(loss := call()).detach(), *torch.autograd.grad(loss, inputs)] for _ in range(20))
    assert all(torch.equal(x, y) for other in others for x, y in zip(first, other, strict=True))


def test_a_part_of_the_gradients_is_that_part_of_all():
    whole, half = calls()["clip_loss"], calls()["clip_loss, half of it"]
    a, b, _ = whole[1]
    loss = clip_loss(a, b, impl="triton")
    both = torch.autograd.grad(loss, (a, b))
    (alone,) = torch.autograd.grad(half[0](), half[1])
    assert torch.equal(alone, both[1])


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_it_compiles_with_cuda_graphs():
    """Also the first time: what the kernels keep from call to call is no memory of the compiler's graphs."""
    triton_small._counters.clear()
    triton_small._spare.clear()
    x = rows(258)

    @torch.compile(fullgraph=True, mode="reduce-overhead")
    def call(x):
        return nt_xent(x * 1.0, temperature=0.1, impl="triton")

    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        loss = call(x)
        (gradient,) = torch.autograd.grad(loss, x)
        assert_near(loss, gradient, x, torch.bfloat16)
