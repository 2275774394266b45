"""When a function is built, when it is not, and that a replay never sees old data."""

import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from clead.attacks import Runner


def replay(function, sample):
    """Like a captured graph: the operations of one run, on the tensors it read, through buffers that stay in place."""
    static = sample.detach().clone()
    graph = make_fx(function)(static)

    def run(x):
        assert x.shape == static.shape and x.dtype == static.dtype
        return graph(static.copy_(x))

    return run


def broken(function, sample):
    raise RuntimeError("operation not permitted when stream is capturing\nand so on")


@pytest.fixture
def weight():
    return torch.tensor([2.0, 3.0])


def runner(build, **options):
    return Runner("graph", builders={"graph": build}, **options)


def test_replays_see_new_images_and_new_weights(weight):
    run_with = runner(replay)

    def function(x):
        return (x * weight).sum(1)

    x = torch.ones(4, 2)
    assert torch.equal(run_with(function, "f", x)(x), torch.full((4,), 5.0))
    x = torch.full((4, 2), 2.0)
    weight.copy_(torch.tensor([1.0, 10.0]))  # in place, as ``View.refresh`` does
    assert torch.equal(run_with(function, "f", x)(x), torch.full((4,), 22.0))


def test_every_kind_of_batch_and_every_function_is_built_once(weight):
    built = []

    def build(function, sample):
        assert sample.requires_grad and sample.is_leaf
        built.append((sample.shape[0], sample.dtype))
        return replay(function, sample)

    run_with = runner(build)
    for _ in range(2):
        for x in (torch.ones(4, 2), torch.ones(3, 2), torch.ones(3, 2, dtype=torch.float64)):
            assert torch.equal(run_with(lambda x: x * weight, "f", x)(x), x * weight)
        x = torch.ones(4, 2)
        assert torch.equal(run_with(lambda x: x + weight, "g", x)(x), x + weight)
    assert built == [(4, torch.float32), (3, torch.float32), (3, torch.float64), (4, torch.float32)]


def test_what_cannot_be_built_runs_as_it_is_and_says_why_once(weight):
    run_with, x = runner(broken), torch.ones(4, 2)
    with pytest.warns(UserWarning, match="speed.executor=graph.*RuntimeError: operation not permitted.*capturing$"):
        assert torch.equal(run_with(lambda x: x * weight, "f", x)(x), x * weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (4, 5):
            x = torch.ones(rows, 2)
            assert torch.equal(run_with(lambda x: x * weight, "f", x)(x), x * weight)


def test_only_a_few_builds_are_kept(weight):
    run_with = runner(replay, limit=2)
    with pytest.warns(UserWarning, match="more than 2 kinds of batches") as caught:
        for rows in (1, 2, 3, 4, 1, 2):
            x = torch.full((rows, 2), float(rows))
            assert torch.equal(run_with(lambda x: x * weight, "f", x)(x), x * weight)
    assert len(caught) == 1


def test_a_graph_needs_cuda(weight):
    x = torch.ones(4, 2)
    with pytest.warns(UserWarning, match="a graph needs a CUDA device, got cpu"):
        assert torch.equal(Runner("graph")(lambda x: x * weight, "f", x)(x), x * weight)


def test_eager_is_the_function_itself(weight):
    def function(x):
        return x * weight

    assert Runner("eager")(function, "f", torch.ones(1, 2)) is function


@pytest.mark.slow
def test_compiled_functions_have_the_same_gradient(weight):
    def function(x):
        return (x * weight).sin().sum(1)

    run_with = Runner("compile")
    for rows in (4, 3):
        x = torch.rand(rows, 2, requires_grad=True)
        run = run_with(function, "f", x)
        assert run is not function
        grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (run, function)]
        torch.testing.assert_close(*grads)


@pytest.mark.gpu
def test_captured_functions_have_the_same_gradient(weight):
    weight = weight.cuda()

    def function(x):
        return (x * weight).sin().sum(1)

    run_with = Runner("graph")
    for step in range(3):
        weight.add_(1)
        for rows in (4, 3):
            x = torch.rand(rows, 2, device="cuda").add(step).requires_grad_()
            run = run_with(function, "f", x)
            assert run is not function
            grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (run, function)]
            torch.testing.assert_close(*grads)


@pytest.mark.gpu
def test_a_function_that_waits_for_the_device_runs_as_it_is_and_the_next_one_is_captured(weight):
    weight, x = weight.cuda(), torch.rand(4, 2, device="cuda").requires_grad_()
    here = torch.cuda.current_stream()

    def waits(x):
        return x * weight.sum().item()

    with pytest.warns(UserWarning, match="attacked eagerly"):
        assert Runner("graph")(waits, "waits", x) is waits
    assert torch.cuda.current_stream() == here and torch.cuda.get_sync_debug_mode() == 0

    def works(x):
        return x * weight

    assert Runner("graph")(works, "works", x) is not works
