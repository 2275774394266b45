"""Similarity in C++ (csrc/cpu/similarity*.cpp): same signatures and meaning as ``reference``.

The matrix products of ``similarity`` are PyTorch's; what is saved are the passes over [M, N] around them. The
temperature divides rows instead of scores, its gradient comes from those of the rows, and for half inputs the float32
scores exist a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _library
from .._rows import full_precision, working_dtype

_library.define("similarity_rows_(Tensor x, float scale, bool normalize, Tensor(a!) rows) -> ()")
_library.define(
    "similarity_rows_backward_(Tensor grad_rows, Tensor x, float scale, bool normalize, "
    "Tensor(a!) grad, Tensor(b!) radial) -> ()"
)
_library.define(
    "similarity_topk_native_(Tensor queries, Tensor bank, int k, bool normalize, "
    "Tensor(a!) values, Tensor(b!) indices) -> ()"
)

_PIECE = 2**18
"""Scores of half inputs held at once in float32, 1 MiB, which stays in the cache; or a few rows, if those are long."""
_LEAST_ROWS = 64


def forward(a: Tensor, b: Tensor, temperature: Tensor | float, normalize: bool) -> Tensor:
    """``<a_i, b_j> / temperature`` [..., M, N], rounded once to the dtype of ``a``."""
    with full_precision(a.device):
        rows_a, rows_b = _rows(a, normalize, 1 / float(temperature)), _rows(b, normalize)
        if rows_a.dtype == a.dtype or a.ndim > 2 or b.ndim > 2:
            return (rows_a @ rows_b.mT).to(a.dtype)
        scores = a.new_empty(len(a), len(b))
        if len(a) >= len(b):
            for piece in _pieces(len(a), len(b)):
                scores[piece] = rows_a[piece] @ rows_b.mT
        else:
            for piece in _pieces(len(b), len(a)):
                scores[:, piece] = rows_a @ rows_b[piece].mT
        return scores


def backward(
    grad: Tensor, a: Tensor, b: Tensor, temperature: Tensor | float, normalize: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. a, b and temperature (in the working dtype); empty where ``needs`` says no."""
    with full_precision(a.device):
        need_a, need_b, need_temperature = needs
        # The temperature's gradient falls out of that of either side.
        through_a = need_a or (need_temperature and not need_b)
        rows_a = _rows(a, normalize) if need_b else None
        rows_b = _rows(b, normalize) if through_a else None
        sums_a, sums_b = _products(grad, a, b, rows_a, rows_b)
        scale = 1 / float(temperature)
        grad_a, grad_b, grad_temperature = (a.new_empty(0, dtype=working_dtype(a.dtype)) for _ in range(3))
        if sums_b is not None:
            grad_b, radial = _through_rows(sums_b, b, normalize, scale)
        if sums_a is not None:
            through, radial = _through_rows(sums_a, a, normalize, scale)
            grad_a = through if need_a else grad_a
        if need_temperature:
            grad_temperature = (-scale * radial.sum()).to(grad_temperature.dtype)
        return grad_a, grad_b, grad_temperature


def topk(queries: Tensor, bank: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """The k largest dots of each query, descending, and where in the bank they are; of equal ones the first."""
    shape = (queries.shape[0], k)
    values = queries.new_empty(shape, dtype=working_dtype(queries.dtype))
    indices = queries.new_empty(shape, dtype=torch.int64)
    torch.ops.clead.similarity_topk_native_.default(queries, bank, k, normalize, values, indices)
    return values.to(queries.dtype), indices


def _products(
    grad: Tensor, a: Tensor, b: Tensor, rows_a: Tensor | None, rows_b: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """``grad @ rows_b`` and ``grad.mT @ rows_a``, summed over what was broadcast; None without the rows."""
    dtype = working_dtype(a.dtype)
    if grad.dtype == dtype or grad.ndim > 2:
        grad = grad.to(dtype)
        sums_a = None if rows_b is None else (grad @ rows_b).sum_to_size(a.shape)
        sums_b = None if rows_a is None else (grad.mT @ rows_a).sum_to_size(b.shape)
        return sums_a, sums_b
    if len(a) >= len(b):
        return _products_in_pieces(grad, rows_a, rows_b)
    sums_b, sums_a = _products_in_pieces(grad.mT, rows_b, rows_a)
    return sums_a, sums_b


def _products_in_pieces(
    grad: Tensor, rows_long: Tensor | None, rows_short: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    sums_long = None if rows_short is None else rows_short.new_empty(len(grad), rows_short.shape[1])
    sums_short = None if rows_long is None else rows_long.new_zeros(grad.shape[1], rows_long.shape[1])
    for piece in _pieces(*grad.shape):
        part = grad[piece].to(working_dtype(grad.dtype))
        if rows_short is not None and sums_long is not None:
            torch.mm(part, rows_short, out=sums_long[piece])
        if rows_long is not None and sums_short is not None:
            sums_short.addmm_(part.mT, rows_long[piece])
    return sums_long, sums_short


def _pieces(long: int, short: int) -> Iterator[slice]:
    """The rows of a [long, short] matrix, few at a time."""
    step = max(_LEAST_ROWS, _PIECE // max(1, short))
    return (slice(first, first + step) for first in range(0, long, step))


def _rows(x: Tensor, normalize: bool, scale: float = 1.0) -> Tensor:
    """What is multiplied: ``x``, normalised if asked for, times ``scale``, in the working dtype."""
    dtype = working_dtype(x.dtype)
    if not normalize and scale == 1.0 and x.dtype == dtype:
        return x
    rows = x.new_empty(x.shape, dtype=dtype)
    torch.ops.clead.similarity_rows_.default(x.flatten(0, -2), scale, normalize, rows.flatten(0, -2))
    return rows


def _through_rows(grad_rows: Tensor, x: Tensor, normalize: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The gradient w.r.t. ``x``, and ``<scale * grad_rows, rows>`` of each row in float64."""
    grad = torch.empty_like(grad_rows, memory_format=torch.contiguous_format)
    radial = x.new_empty(x.shape[:-1].numel(), dtype=torch.float64)
    torch.ops.clead.similarity_rows_backward_.default(
        grad_rows.contiguous().flatten(0, -2), x.flatten(0, -2), scale, normalize, grad.flatten(0, -2), radial
    )
    return grad.to(x.dtype), radial
