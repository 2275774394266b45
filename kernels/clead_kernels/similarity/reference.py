"""Similarity in eager PyTorch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from .._rows import full_precision, working_dtype, working_rows, working_rows_backward

_TOPK_SCORES = 2**24
"""Scores held at once by ``topk``: 64 MiB in float32."""


def forward(a: Tensor, b: Tensor, temperature: Tensor | float, normalize: bool) -> Tensor:
    """``<a_i, b_j> / temperature`` [..., M, N] in the working dtype, rounded once to the dtype of ``a``."""
    with full_precision(a.device):
        return (_dots(a, b, normalize) / _on(temperature, a)).to(a.dtype)


def backward(
    grad: Tensor, a: Tensor, b: Tensor, temperature: Tensor | float, normalize: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. a, b and temperature (in the working dtype); empty where ``needs`` says no."""
    with full_precision(a.device):
        grad, temperature = grad.to(working_dtype(a.dtype)), _on(temperature, a)
        rows_a, rows_b = (working_rows(x, normalize) for x in (a, b))
        grad_dots = grad / temperature
        grad_a, grad_b, grad_temperature = (grad.new_empty(0) for _ in range(3))
        if needs[0]:
            grad_a = working_rows_backward((grad_dots @ rows_b).sum_to_size(a.shape), a, normalize)
        if needs[1]:
            grad_b = working_rows_backward((grad_dots.mT @ rows_a).sum_to_size(b.shape), b, normalize)
        if needs[2]:
            grad_temperature = -(grad_dots * (rows_a @ rows_b.mT)).sum() / temperature
        return grad_a, grad_b, grad_temperature


def topk(queries: Tensor, bank: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """The k largest dots of each query, descending, and where in the bank they are; ties in any order."""
    if queries.shape[0] == 0:
        return queries.new_empty(0, k), queries.new_empty(0, k, dtype=torch.int64)
    rows = max(1, _TOPK_SCORES // max(1, bank.shape[0]))
    with full_precision(queries.device):
        best = [_dots(some, bank, normalize).topk(k, dim=1) for some in torch.split(queries, rows)]
    values, indices = (torch.cat(parts) for parts in zip(*best, strict=True))
    return values.to(queries.dtype), indices


def _dots(a: Tensor, b: Tensor, normalize: bool) -> Tensor:
    return working_rows(a, normalize) @ working_rows(b, normalize).mT


def _on(temperature: Tensor | float, a: Tensor) -> Tensor | float:
    if isinstance(temperature, Tensor):
        return temperature.to(a.device, working_dtype(a.dtype))
    return temperature
