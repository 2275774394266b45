"""What people rely on whichever op they call: autocast, scaling, compile, torch.func, threads, forks, copies."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensorMode

from clead_kernels import (
    FalseNegatives,
    clip_loss,
    dispatch,
    info_nce,
    instance_margin,
    nt_xent,
    pgd_step_,
    project_,
    random_start_,
    sigmoid_loss,
    similarity,
    similarity_topk,
    sup_con,
)

pytestmark = pytest.mark.kernels

LABELS = torch.tensor([0, 1, 0, 1, 2, 2])
DIFFERENTIABLE = {
    "info_nce": lambda a, b: info_nce(a, b, reduction="none"),
    "nt_xent": lambda a, b: nt_xent(a, reduction="none"),
    "sup_con": lambda a, b: sup_con(a, torch.arange(len(a), device=a.device) % 3, reduction="none"),
    "clip_loss": lambda a, b: clip_loss(a, b, reduction="none"),
    "instance_margin": instance_margin,
    "sigmoid_loss": lambda a, b: sigmoid_loss(a, b, reduction="none"),
    "similarity": similarity,
}
IN_PLACE = {
    "pgd_step_": lambda y, grad, x, **k: pgd_step_(y, grad, x, eps=0.1, step_size=0.05, **k),
    "project_": lambda y, grad, x, **k: project_(y, x, eps=0.1, **k),
    "random_start_": lambda y, grad, x, **k: random_start_(y, x, eps=0.1, seed=7, **k),
}
every_op = pytest.mark.parametrize("op", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
slow_batching = pytest.mark.filterwarnings("ignore:There is a performance drop")
every_step = pytest.mark.parametrize("step", IN_PLACE.values(), ids=IN_PLACE)


@pytest.fixture
def pair(randn):
    return randn(6, 5, dtype=torch.float32, seed=1, grad=True), randn(6, 5, dtype=torch.float32, seed=2, grad=True)


def images(seed=0):
    return torch.rand(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def grads_of(op, a, b):
    value = op(a, b)
    return value, *torch.autograd.grad(value.sum(), (a, b), materialize_grads=True)


@every_op
def test_autocast_takes_inputs_as_they_come(pair, op):
    plain = grads_of(op, *pair)
    with torch.autocast("cpu", torch.bfloat16):
        cast = grads_of(op, *pair)
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(plain, cast, strict=True))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("op", [info_nce, clip_loss, sigmoid_loss])
def test_a_gradient_scaler_saves_what_float16_would_lose(randn, op, impl):
    """Gradients of about 1e-8 are 0 in float16; times 65,536 they are not, if they are scaled before being rounded."""
    a, b = (5000 * randn(256, 32, dtype=torch.float16, seed=seed) for seed in (1, 2))
    a.requires_grad_()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    scaler.scale(op(a, b, temperature=1.0, impl=impl)).backward()
    exact = a.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(op(exact, b.double(), temperature=1.0, impl="reference"), exact)
    assert (a.grad.double() / 65536 - truth).norm() <= 2**-10 * truth.norm()
    assert truth.half().count_nonzero() < truth.numel() / 2


def compiled_and_counted(function):
    """``function`` compiled for any batch size, and the list of its graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=True, backend=backend), graphs


@every_op
def test_compiled_once_for_all_batch_sizes(randn, op):
    (compiled, graphs), first = compiled_and_counted(op), 0
    for rows in (8, 12, 64):
        a, b = (randn(rows, 5, seed=seed, grad=True) for seed in (1, 2))
        for ours, plain in zip(grads_of(compiled, a, b), grads_of(op, a, b), strict=True):
            torch.testing.assert_close(ours, plain)
        first = len(graphs) if rows == 8 else first  # more than one where a pass over the graph starts anew
    assert len(graphs) == first


@every_step
def test_steps_are_compiled_once_for_all_batch_sizes(step):
    (compiled, graphs), first = compiled_and_counted(lambda y, grad, x: step(y, grad, x)), 0
    for batch in (2, 3, 5):
        y, grad, x = (torch.rand(batch, 3, 4, 4) for _ in range(3))
        twin = y.clone()
        compiled(y, grad, x)
        assert torch.equal(y, step(twin, grad, x))
        first = len(graphs) if batch == 2 else first
    assert len(graphs) == first


@every_op
def test_inference_mode_and_deterministic_algorithms(pair, op):
    plain = grads_of(op, *pair)
    with torch.inference_mode():
        assert torch.equal(op(*pair), plain[0])
    torch.use_deterministic_algorithms(True)
    try:
        again = grads_of(op, *pair)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, plain, again))


@every_step
def test_steps_in_inference_mode(step):
    y, grad, x = images().unbind()
    y, wanted = y.clone(), step(y.clone(), grad, x)
    with torch.inference_mode():
        assert torch.equal(step(y, grad, x), wanted)
        assert torch.equal(step(torch.zeros_like(y).copy_(images()[0]), grad, x), wanted)


@slow_batching
@every_op
def test_reverse_mode_of_torch_func(pair, op):
    a, b = (x.detach() for x in pair)
    wanted = grads_of(op, *pair)[1:]
    assert all(map(torch.equal, torch.func.grad(lambda *x: op(*x).sum(), (0, 1))(a, b), wanted))
    jacobian = torch.func.jacrev(op)(a, b)
    torch.testing.assert_close(jacobian.reshape(-1, *a.shape).sum(0), wanted[0])


@slow_batching
@every_op
def test_vmap_of_values_and_gradients(randn, op):
    a, b = (randn(3, 6, 5, dtype=torch.float32, seed=seed) for seed in (1, 2))
    values, grads = torch.func.vmap(op)(a, b), torch.func.vmap(torch.func.grad(lambda *x: op(*x).sum()))(a, b)
    for x, y, value, grad in zip(a, b, values, grads, strict=True):
        plain = grads_of(op, x.clone().requires_grad_(), y.clone().requires_grad_())
        assert torch.equal(value, plain[0]) and torch.equal(grad, plain[1])


@every_op
def test_second_and_forward_derivatives_are_refused(pair, op):
    a, b = pair
    (first,) = torch.autograd.grad(op(a, b).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        first.sum().backward()
    a, b = a.detach(), b.detach()
    twice = torch.func.grad(lambda x: torch.func.grad(lambda y: op(y, b).sum())(x).sum())
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        twice(a)
    for forward in (torch.func.jacfwd(op), torch.func.hessian(op)):
        with pytest.raises(NotImplementedError, match="clead_kernels has reverse mode only|reverse mode only, but"):
            forward(a, b)


@every_step
def test_steps_inside_transforms_are_refused(step):
    y, grad, x = images().unbind()
    with pytest.raises(NotImplementedError, match="x_adv is inside a transform of torch.func"):
        torch.func.vmap(step)(y[None].clone(), grad[None], x[None])
    with pytest.raises(NotImplementedError, match="x_adv is inside a transform of torch.func"):
        torch.func.jvp(lambda z: step(z, grad, x), (y.clone(),), (y,))


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_accelerators_run_the_reference(device):
    for op in dispatch.OPS:
        assert dispatch.resolve(op, "auto", device=device, dtype=torch.float32) == "reference"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_empty_batches(dtype):
    nothing, some = torch.zeros(0, 3, dtype=dtype, requires_grad=True), torch.ones(4, 3, dtype=dtype)
    for name in ("info_nce", "sup_con", "clip_loss", "instance_margin", "sigmoid_loss"):
        value, by_a, _ = grads_of(DIFFERENTIABLE[name], nothing, nothing)
        assert value.shape == (0,) and by_a.shape == (0, 3)
    for loss in (info_nce(nothing, some), nt_xent(nothing), sigmoid_loss(nothing, some), clip_loss(nothing, nothing)):
        loss.backward()
        assert loss.item() == 0
    assert similarity(nothing, some).shape == (0, 4) and similarity_topk(nothing, some, 2)[1].shape == (0, 2)
    for shape in ((0, 3, 4, 4), (2, 0), (0,)):
        for step in IN_PLACE.values():
            for norm in ("linf", "l2", "l1"):
                y, x = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
                assert step(y, torch.empty(shape, dtype=dtype), x, norm=norm) is y


def test_threads_of_python_do_not_disturb_each_other(randn):
    inputs = [randn(300, 40, dtype=torch.float32, seed=seed, grad=True) for seed in range(4)]
    wanted, found = [torch.autograd.grad(nt_xent(z), z)[0] for z in inputs], [[] for _ in inputs]

    def work(at):
        for _ in range(20):
            found[at].append(torch.autograd.grad(nt_xent(inputs[at]), inputs[at])[0])

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(grads) == 20 and all(torch.equal(g, wanted[at]) for g in grads) for at, grads in enumerate(found))


def child(z, queue):
    torch.set_num_threads(1)  # as in workers of a DataLoader; OpenMP's threads do not survive a fork, in PyTorch alike
    queue.put([nt_xent(z, impl=impl).item() for impl in ("auto", "reference")])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_the_same(randn):
    """After the parent has started threads, which a fork does not take along."""
    before, z = torch.get_num_threads(), randn(600, 64, dtype=torch.float32)
    torch.set_num_threads(2)
    try:
        wanted = [nt_xent(z, impl=impl).item() for impl in ("auto", "reference")]
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=(z, queue))
        process.start()
        process.join(60)
        assert process.exitcode == 0, "the child hangs or died"
        assert queue.get() == pytest.approx(wanted, rel=1e-6)
    finally:
        torch.set_num_threads(before)


def test_views_whose_elements_overlap_are_not_written():
    x, memory = torch.rand(4, 3), torch.rand(20)
    for y in (memory[:3].expand(4, 3), memory.unfold(0, 3, 2)[:4], memory.as_strided((4, 3), (2, 1))):
        with pytest.raises(ValueError, match="x_adv is an expanded view whose elements share memory"):
            project_(y, x, eps=0.1)
    apart = memory.as_strided((4, 3), (4, 1))
    assert project_(apart, x, eps=0.1) is apart


def test_tensors_without_memory(pair):
    with FakeTensorMode():
        a = torch.randn(6, 3, requires_grad=True)
        threshold, index = torch.tensor(0.5), torch.arange(6)
        rule = FalseNegatives(threshold=threshold)
        info_nce(a, a, positives=index, temperature=torch.tensor(0.1), false_negatives=rule).backward()
        assert a.grad.shape == a.shape
        x = torch.rand(2, 3)
        assert pgd_step_(x.clone(), x + 1, x, eps=0.1, step_size=torch.rand(2)).shape == x.shape
    a, b = (x.detach().to("meta") for x in pair)
    assert all(op(a, b).device.type == "meta" for op in DIFFERENTIABLE.values())


class Tagged(torch.Tensor):
    pass


@every_op
def test_subclasses_keep_their_type(pair, op):
    a, b = pair
    value = op(a.detach().as_subclass(Tagged), b.detach())
    assert type(value) is Tagged
    assert torch.equal(value.as_subclass(torch.Tensor), op(a, b))


def test_rules_are_copied_and_stored(pair):
    a, b = pair
    rule = FalseNegatives(threshold=torch.linspace(-0.5, 0.5, 6), labels=LABELS, treatment="weight", weight=0.25)
    wanted = info_nce(a, b, false_negatives=rule)
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert torch.equal(info_nce(a, b, false_negatives=twin), wanted)
