"""The instance margin against loops over pairs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from clead_kernels import instance_margin
from clead_kernels.contrastive import margin as module

pytestmark = pytest.mark.kernels
POSITIVES = torch.tensor([3, -1, 0, 7, 3, 5])


def loop(a, b, temperature, positives, normalize):
    if normalize:
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    rows = []
    for i, p in enumerate(positives):
        others = [a[i] @ b[j] / temperature for j in range(len(b)) if j != p]
        rows.append(max(others) - a[i] @ b[p] / temperature if p >= 0 and others else 0.0 * a[i].sum())
    return torch.stack(rows)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("positives", [None, POSITIVES])
@pytest.mark.parametrize(("impl", "chunk"), [("auto", 0), ("reference", 1 << 22), ("reference", 16)])
def test_values_and_gradients(randn, monkeypatch, normalize, positives, impl, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    inputs = randn(6, 4, seed=1, grad=True), randn(8, 4, seed=2, grad=True), torch.tensor(0.3).double().requires_grad_()
    a, b, temperature = inputs
    ours = instance_margin(a, b, temperature=temperature, positives=positives, normalize=normalize, impl=impl)
    index = list(range(6)) if positives is None else positives.tolist()
    truth = loop(a, b, temperature, index, normalize)
    torch.testing.assert_close(ours, truth)
    upstream = torch.linspace(-1, 2, 6).double()
    expected = torch.autograd.grad(truth, inputs, upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, upstream), expected)


def test_only_the_gradients_asked_for(randn):
    a, b = randn(4, 3, seed=1, grad=True), randn(5, 3, seed=2, grad=True)
    both = torch.autograd.grad(instance_margin(a, b).sum(), (a, b))
    assert torch.equal(torch.autograd.grad(instance_margin(a, b.detach()).sum(), a)[0], both[0])
    assert torch.equal(torch.autograd.grad(instance_margin(a.detach(), b).sum(), b)[0], both[1])


def test_hand_numbers_and_edges(randn):
    a, b = torch.eye(2).double(), torch.tensor([[1.0, 0.0], [3.0, 4.0], [-1.0, 0.0]]).double()
    torch.testing.assert_close(instance_margin(a, b, temperature=0.5), torch.tensor([-0.8, -1.6]).double())
    torch.testing.assert_close(instance_margin(a, b, normalize=False), torch.tensor([2.0, -4.0]).double())
    z = randn(1, 3, grad=True)
    alone = instance_margin(z, z.detach())
    assert alone.tolist() == [0.0]
    assert torch.autograd.grad(alone.sum(), z)[0].eq(0).all()
    assert instance_margin(z[:0], z).shape == (0,)
    nothing = instance_margin(z, z[:0], positives=torch.tensor([-1]))
    assert [x.eq(0).all().item() for x in (nothing, *torch.autograd.grad(nothing.sum(), z))] == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(randn, relative_error, dtype):
    """Margins and gradients of rounded inputs, no worse than eager's or a few units of the output's last place."""
    a, b = randn(64, 40, dtype=dtype, seed=1, grad=True), randn(96, 40, dtype=dtype, seed=2, grad=True)
    exact = [x.detach().double().requires_grad_() for x in (a, b)]
    ours, truth = instance_margin(a, b, temperature=0.1), loop(*exact, 0.1, list(range(64)), True)
    assert ours.dtype == torch.float32
    assert relative_error(ours, truth.detach()) < 8 * 2**-24
    grads = zip(torch.autograd.grad(ours.sum(), (a, b)), torch.autograd.grad(truth.sum(), exact), strict=True)
    unit = torch.finfo(dtype).eps / 2
    assert all(x.dtype == dtype and relative_error(x, y) < 8 * unit for x, y in grads)


def test_zero_rows_get_no_gradient():
    z = torch.zeros(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(instance_margin(z, torch.eye(3, 4)).sum(), z)
    assert grad.eq(0).all()


def test_opcheck_and_compile(randn):
    a, b, scale = randn(6, 3, grad=True), randn(8, 3, grad=True), torch.tensor(0.5, requires_grad=True)
    opcheck(torch.ops.clead.instance_margin.default, (a, b, scale, 0.0, True, POSITIVES, "reference"))
    compiled = torch.compile(
        lambda a, b: F.relu(instance_margin(a, b, temperature=0.2)).sum(), fullgraph=True, backend="aot_eager"
    )
    expected = F.relu(instance_margin(a, b, temperature=0.2)).sum()
    torch.testing.assert_close(compiled(a, b), expected)
    torch.testing.assert_close(torch.autograd.grad(compiled(a, b), (a, b)), torch.autograd.grad(expected, (a, b)))
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(instance_margin(a, b).sum(), a, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda z: instance_margin(z, z[:3]), ValueError, r"at least as many rows as anchors \(4\), got 3"),
        (lambda z: instance_margin(z, z, positives=torch.full((4,), 4)), ValueError, r"positives .*\[-1, 4\), found 4"),
        (lambda z: instance_margin(z, z.half()), TypeError, "anchors and candidates must have the same dtype"),
        (lambda z: instance_margin(z, z, temperature=0.0), ValueError, "temperature must be positive and finite"),
        (lambda z: instance_margin(z, z, impl="triton"), NotImplementedError, "impl='triton' cannot run instance_mar"),
    ],
)
def test_bad_arguments(randn, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(randn(4, 3))
