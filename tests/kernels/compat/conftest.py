"""What the tests of all drop-ins share: a loss and its gradients against float64 truth, or against the library."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def agrees(relative_error) -> Callable[..., None]:
    """``agrees(ours, truth, *inputs, dtype=…)``: same loss and same gradients of inputs that are rounded to ``dtype``.

    ``truth`` gets them in float64. An input that one of both does not differentiate has the gradient 0.
    """

    def check(ours, truth, *inputs: Tensor, dtype: torch.dtype = torch.float64) -> None:
        rounded = [x.detach().to(dtype) for x in inputs]
        loss, grads = _differentiated(ours, [x.clone().requires_grad_() for x in rounded])
        expected, expected_grads = _differentiated(truth, [x.double().requires_grad_() for x in rounded])
        assert loss.item() == pytest.approx(expected.item(), rel=TOLERANCE[dtype], abs=1e-12)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for x, grad, wanted in zip(rounded, grads, expected_grads, strict=True):
            assert grad.dtype == x.dtype
            if wanted.norm() > 1e-12:
                assert relative_error(grad, wanted) < TOLERANCE[dtype]
            else:
                assert grad.abs().max() < 1e-12

    return check


def _differentiated(loss, inputs):
    value = loss(*inputs)
    if value.requires_grad:
        value.backward()
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]
