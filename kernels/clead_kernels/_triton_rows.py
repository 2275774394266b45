"""Rows in Triton kernels: tiles of them, their norms and dot products; and what their callers share.

Normalisation: half-precision rows meet raw and the dot product is scaled by both inverse norms, so nothing is rounded
twice; float32 rows may be scaled as they are loaded (UNIT), where the rounding errors of their elements average out.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 512
"""Largest number of dimensions: a program keeps whole rows, padded to a power of two, and their gradient."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TINY = tl.constexpr(1e-12)
_ROWS = 32  # of a program that only reads rows


class Config(NamedTuple):
    """Rows a program owns, rows and dimensions it takes from the other side at a time, warps, pipeline stages."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def padded_width(width: int) -> int:
    """The next power of two, at least 16: what a tile holds."""
    return max(16, 1 << max(width - 1, 0).bit_length())


def precision(dtype: torch.dtype) -> str:
    """How products with float32 factors are made: PRECISION of the kernels."""
    return "exact" if INTERPRETED else "tf32" if dtype == torch.float16 else "ieee"


def inverse_norms(x: Tensor) -> Tensor:
    """1 / max(|x|, 1e-12) of the rows of a contiguous ``x`` [rows, d], float32 [rows]."""
    count, width = x.shape
    out = x.new_empty(count, dtype=torch.float32)
    if count:
        inverse_norms_kernel[(-(-count // _ROWS),)](
            x, out, count, x.stride(0), D=width, BLOCK_D=padded_width(width), BLOCK_M=_ROWS
        )
    return out


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: makes it that of ``x``."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


@triton.jit
def load_rows(x, index, count, stride, D: tl.constexpr, first, WIDTH: tl.constexpr):
    """Dimensions first ... first + WIDTH: [rows, WIDTH], zero beyond the last row and the last dimension."""
    dims = first + tl.arange(0, WIDTH)
    pointers = x + index.to(tl.int64)[:, None] * stride + dims[None, :]
    if D > 0 and D % WIDTH == 0:
        return tl.load(pointers, mask=(index < count)[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=(index < count)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """a @ b.T + acc in float32. "exact" is for the interpreter, which multiplies bfloat16 wrongly."""
    if PRECISION == "exact":
        return tl.dot(a.to(tl.float32), tl.trans(b).to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, tl.trans(b), acc, input_precision="ieee")


@triton.jit
def dots(
    x, y, own, index, own_count, own_stride, own_norm, other, column, other_count, other_stride, other_norm,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All dot products of a tile: of the rows x and y at hand, or BLOCK_K dimensions at a time."""
    dot = tl.zeros([index.shape[0], column.shape[0]], tl.float32)
    if BLOCK_K == BLOCK_D:
        dot = matmul(x, y, dot, PRECISION)
    else:
        for first in range(0, D, BLOCK_K):
            x_part = load_rows(own, index, own_count, own_stride, D, first, BLOCK_K)
            y_part = load_rows(other, column, other_count, other_stride, D, first, BLOCK_K)
            if UNIT:
                x_part = x_part * own_norm
                y_part = y_part * other_norm[:, None]
            dot = matmul(x_part, y_part, dot, PRECISION)
    return dot


@triton.jit
def squared_norm(x):
    """Of each row, in float32."""
    x = x.to(tl.float32)
    return tl.sum(x * x, axis=1)


@triton.jit
def inverse_norm(x):
    """1 / max(|x|, 1e-12) of each row, rounded once: an error here moves all logits of a row by the same factor."""
    norm = tl.sqrt(squared_norm(x).to(tl.float64))
    return (1.0 / tl.maximum(norm, TINY)).to(tl.float32)


@triton.jit
def inverse_norms_kernel(
    x, out, count, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """1 / max(|x|, 1e-12) of each row."""
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(out + index, inverse_norm(load_rows(x, index, count, stride, D, 0, BLOCK_D)), mask=index < count)


@triton.jit
def accumulate(grad, y, acc, PRECISION: tl.constexpr):
    """grad @ y + acc: what a tile's gradient by its products adds to that of the rows. Rows of zeros add nothing."""
    if PRECISION == "exact":
        return tl.dot(grad, y.to(tl.float32), acc, input_precision="ieee")
    elif PRECISION == "ieee":
        return tl.dot(grad.to(y.dtype), y, acc, input_precision="ieee")
    else:
        return tl.dot(grad, y.to(tl.float32), acc, input_precision=PRECISION)
