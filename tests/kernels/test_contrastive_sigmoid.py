"""The sigmoid loss against loops over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

from clead_kernels import _native, sigmoid_loss

pytestmark = pytest.mark.kernels


def loop(a, b, temperature, bias, normalize):
    if normalize:
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    rows = []
    for i, x in enumerate(a):
        signs = [1.0 if i == j else -1.0 for j in range(len(b))]
        rows.append(sum((1 + (-z * (x @ y / temperature + bias)).exp()).log() for z, y in zip(signs, b, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("columns", [6, 8])
def test_values_and_gradients(randn, normalize, columns):
    numbers = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, -1.5))
    inputs = a, b, temperature, bias = randn(6, 4, seed=1, grad=True), randn(columns, 4, seed=2, grad=True), *numbers
    ours = sigmoid_loss(a, b, temperature=temperature, bias=bias, normalize=normalize, reduction="none")
    truth = loop(a, b, temperature, bias, normalize)
    torch.testing.assert_close(ours, truth)
    upstream = torch.linspace(-1, 2, 6).double()
    expected = torch.autograd.grad(truth, inputs, upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, upstream), expected)


def test_reductions_weights_and_hand_numbers(randn):
    eye = torch.eye(2, dtype=torch.float64)
    # Logits 1/t + b = 2 on the diagonal, b = -2 elsewhere: two terms log(1 + e^-2) a row.
    assert sigmoid_loss(eye, eye, temperature=0.25, bias=-2.0).item() == pytest.approx(2 * math.log1p(math.exp(-2)))
    a, b = randn(4, 3, seed=1), randn(4, 3, seed=2)
    rows, weights = sigmoid_loss(a, b, reduction="none"), torch.tensor([1.0, 0.0, -1.0, 2.0])
    torch.testing.assert_close(sigmoid_loss(a, b, weights=weights), (rows * weights).sum() / 4)
    torch.testing.assert_close(sigmoid_loss(a, b, reduction="sum"), rows.sum())
    assert sigmoid_loss(a[:0], b).item() == 0


def test_small_losses_keep_their_digits():
    """e^-40 is far below the last place of 1, and e^200 is above float32."""
    eye = torch.eye(2)
    loss = sigmoid_loss(eye, eye, temperature=1 / 80, bias=-40.0)
    assert loss.item() == pytest.approx(2 * math.exp(-40), rel=1e-5)
    assert sigmoid_loss(eye, -eye, temperature=1 / 200, bias=0.0).item() == pytest.approx(200 + math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(randn, relative_error, dtype):
    a, b = randn(64, 40, dtype=dtype, seed=1, grad=True), randn(64, 40, dtype=dtype, seed=2, grad=True)
    exact = [x.detach().double().requires_grad_() for x in (a, b)]
    ours, truth = sigmoid_loss(a, b, bias=-5.0, reduction="none"), loop(*exact, 0.1, -5.0, True)
    assert ours.dtype == torch.float32
    assert relative_error(ours, truth.detach()) < 2e-6
    grads = zip(torch.autograd.grad(ours.sum(), (a, b)), torch.autograd.grad(truth.sum(), exact), strict=True)
    unit = max(torch.finfo(dtype).eps / 2, 2e-7)
    assert all(x.dtype == dtype and relative_error(x, y) < 8 * unit for x, y in grads)


def test_opcheck_and_compile(randn):
    numbers = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, -1.5))
    a, b, temperature, bias = randn(6, 4, seed=1, grad=True), randn(6, 4, seed=2, grad=True), *numbers
    for impl in ("reference", *(["native"] if _native.available() else [])):
        opcheck(torch.ops.clead.sigmoid_loss.default, (a, b, temperature, 0.0, bias, 0.0, True, impl))

    def function(a, bias):
        return sigmoid_loss(a, b, temperature=0.2, bias=bias)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(f(a, bias), (a, bias)) for f in (compiled, function))
    torch.testing.assert_close(got, expected)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(sigmoid_loss(a, b), a, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda z: sigmoid_loss(z, z[:3]), ValueError, r"b must have at least as many rows as a \(4\), got 3"),
        (lambda z: sigmoid_loss(z, z, bias=torch.zeros(1)), ValueError, "bias must be a float or a 0-d floating-point"),
        (lambda z: sigmoid_loss(z, z, bias=None), TypeError, "bias must be a float or a 0-d tensor, got NoneType"),
        (lambda z: sigmoid_loss(z, z, temperature=-1.0), ValueError, "temperature must be positive and finite"),
        (lambda z: sigmoid_loss(z, z, reduction="mean_valid"), ValueError, "reduction must be one of"),
        (lambda z: sigmoid_loss(z, z, impl="triton"), NotImplementedError, "impl='triton' cannot run sigmoid_loss"),
    ],
)
def test_bad_arguments(randn, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(randn(4, 3))
