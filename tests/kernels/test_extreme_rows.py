"""Rows of extreme length, and rows that are not numbers."""

from __future__ import annotations

import math

import pytest
import torch

from clead_kernels import info_nce, instance_margin, nt_xent, sigmoid_loss, similarity

pytestmark = pytest.mark.kernels

OPS = {
    "info_nce": lambda a, b, **k: info_nce(a, b, reduction="none", **k),
    "nt_xent": lambda a, b, **k: nt_xent(a, reduction="none", **k),
    "instance_margin": instance_margin,
    "sigmoid_loss": lambda a, b, **k: sigmoid_loss(a, b, reduction="none", **k),
    "similarity": similarity,
}


@pytest.mark.parametrize(
    ("dtype", "scale", "impl"),
    [
        (torch.float32, 2.0**66, "auto"),
        (torch.float32, 2.0**120, "auto"),
        (torch.bfloat16, 2.0**120, "auto"),
        (torch.float64, 2.0**1000, "auto"),
        (torch.float64, 2.0**500, "auto"),
        (torch.float64, 2.0**515, "auto"),
        (torch.float64, 2.0**515, "reference"),
        (torch.float32, 2.0**66, "reference"),
        (torch.float32, 2.0**120, "reference"),
        (torch.bfloat16, 2.0**120, "reference"),
        (torch.float64, 2.0**1000, "reference"),
    ],
)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_rows_whose_squares_overflow(randn, op, dtype, scale, impl):
    a, b = randn(6, 4, dtype=dtype, seed=1), randn(6, 4, dtype=dtype, seed=2)
    torch.testing.assert_close(op(a * scale, b, impl=impl), op(a, b, impl=impl), rtol=1e-5, atol=1e-5)
    plain, large = (torch.func.grad(lambda x: op(x, b, impl=impl).sum())(x) for x in (a, a * scale))
    torch.testing.assert_close(large.double() * scale, plain.double(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_what_is_not_a_number_shows(randn, op, impl, value):
    """In its own row at least, in loss and gradient."""
    a, b = randn(6, 4, dtype=torch.float32, seed=1), randn(6, 4, dtype=torch.float32, seed=2)
    a[2, 1] = value
    a.requires_grad_()
    rows = op(a, b, impl=impl)
    assert rows[2].isnan().any()
    assert torch.autograd.grad(rows.sum(), a)[0][2].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", ["auto", "native", "reference"])
def test_a_candidate_that_is_not_a_number_shows_in_every_margin(randn, impl, dtype):
    """As the largest of all: the rest of the row says nothing about it. Where it is the positive, as well."""
    a, b = randn(200, 4, dtype=dtype, seed=1), randn(230, 4, dtype=dtype, seed=2)
    assert not instance_margin(a, b, impl=impl).isnan().any()
    b[210, 3] = math.nan
    assert instance_margin(a, b, impl=impl).isnan().all()
    b[210, 3] = math.inf  # its dot products are infinite with either sign, or with 0 not a number
    a[:, 3], a[7, 3] = 1.0, 0.0
    margins = instance_margin(a, b, normalize=False, impl=impl)
    assert margins[7].isnan() and (margins[:7] == math.inf).all() and (margins[8:] == math.inf).all()
