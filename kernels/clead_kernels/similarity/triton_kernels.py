"""Similarity and the search for the k most similar rows in Triton. See ``triton`` for what the callers pass.

Dot products are made from the rows as they are and scaled by both inverse norms: nothing is rounded on the way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import TINY, accumulate, load_rows, matmul, squared_norm

LAST = tl.constexpr(4294967295)  # of 32-bit indices
NOTHING = tl.constexpr(-9223372036854775808)  # below every key


@triton.jit
def reciprocal(temperature, ON_DEVICE: tl.constexpr):
    """1 / temperature: given as it is, or as a pointer to the temperature."""
    if ON_DEVICE:
        return tl.div_rn(1.0, tl.load(temperature).to(tl.float32))
    else:
        return temperature


@triton.jit
def scores(
    a, row, rows, a_stride, a_norms, b, column, columns, b_stride, b_norms,
    D: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """<a_i, b_j> of a tile [rows, columns], BLOCK_K dimensions at a time; cosines where norms are given."""
    dot = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for first in range(0, D, BLOCK_K):
        x = load_rows(a, row, rows, a_stride, D, first, BLOCK_K)
        y = load_rows(b, column, columns, b_stride, D, first, BLOCK_K)
        dot = matmul(x, y, dot, PRECISION)
    if a_norms is not None:
        a_norm = tl.load(a_norms + row, mask=row < rows, other=0.0)
        b_norm = tl.load(b_norms + column, mask=column < columns, other=0.0)
        dot = dot * (a_norm[:, None] * b_norm[None, :])
    return dot


@triton.jit
def similarity_kernel(
    a, b, a_norms, b_norms, temperature, out, rows, columns, a_step, b_step, a_stride, b_stride,
    D: tl.constexpr, ON_DEVICE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of ``out`` [batch, rows, columns]. Steps: rows from one batch to the next."""
    across, down = tl.cdiv(columns, BLOCK_N), tl.cdiv(rows, BLOCK_M)
    program = tl.program_id(0)
    batch = (program // (across * down)).to(tl.int64)
    row = program // across % down * BLOCK_M + tl.arange(0, BLOCK_M)
    column = program % across * BLOCK_N + tl.arange(0, BLOCK_N)
    if a_norms is not None:
        a_norms += batch * a_step
        b_norms += batch * b_step
    dot = scores(
        a + batch * a_step * a_stride, row, rows, a_stride, a_norms, b + batch * b_step * b_stride, column, columns,
        b_stride, b_norms, D, BLOCK_K, PRECISION,
    )  # fmt: skip
    score = dot * reciprocal(temperature, ON_DEVICE)
    pointers = out + (batch * rows + row.to(tl.int64))[:, None] * columns + column[None, :]
    tl.store(pointers, score.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def similarity_backward_kernel(
    own, other, own_norms, other_norms, temperature, grad, out, radials, own_count, other_count, own_step,
    other_step, own_stride, other_stride, grad_batch_stride, grad_own_stride, grad_other_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ON_DEVICE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M own rows, over all other rows; of either side, by the strides of ``grad``.

    ``radials``: of each own row, sum_j grad_ij s_ij, of which the temperature's gradient is made.
    """
    blocks = tl.cdiv(own_count, BLOCK_M)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    index = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < own_count
    own += batch * own_step * own_stride
    other += batch * other_step * other_stride
    grad += batch * grad_batch_stride
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, other_count, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = column < other_count
        y = load_rows(other, column, other_count, other_stride, D, 0, BLOCK_D)
        pointers = (
            grad + index.to(tl.int64)[:, None] * grad_own_stride + column.to(tl.int64)[None, :] * grad_other_stride
        )
        g = tl.load(pointers, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if other_norms is not None:
            g = g * tl.load(other_norms + batch * other_step + column, mask=inside, other=0.0)[None, :]
        acc = accumulate(g, y, acc, PRECISION)
    acc = acc * reciprocal(temperature, ON_DEVICE)
    row = load_rows(own, index, own_count, own_stride, D, 0, BLOCK_D).to(tl.float32)
    if own_norms is not None:
        norm = tl.load(own_norms + batch * own_step + index, mask=there, other=0.0)[:, None]
        grown = tl.sqrt_rn(squared_norm(row)) >= TINY
        row = row * norm
        radial = tl.sum(row * acc, axis=1)
        acc = tl.where(grown[:, None], norm * (acc - row * radial[:, None]), 0.0)
    else:
        radial = tl.sum(row * acc, axis=1)
    position = batch * own_count + index.to(tl.int64)
    tl.store(radials + position, radial, mask=there)
    dims = tl.arange(0, BLOCK_D)
    pointers = out + position[:, None] * D + dims[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=there[:, None] & (dims < D)[None, :])


@triton.jit
def turn(bits):
    """From the bits of a float32 to an int32 in the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_of(score, column):
    """int64, larger for a better candidate: a larger score, or of equal ones the smaller index. NaN is largest."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(score != score, 0x7FFFFFFF, bits)
    return (turn(bits).to(tl.int64) << 32) | (column.to(tl.int64) ^ LAST)


@triton.jit
def topk_kernel(
    queries, bank, query_norms, bank_norms, best_keys, rows, columns, length, query_stride, bank_stride,
    D: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``best_keys`` [shares, rows, K], ascending: the best of one share of the bank for BLOCK_M queries."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * length
    last = tl.minimum(first + length, columns)
    best = tl.full([BLOCK_M, K], NOTHING, tl.int64)
    bar = tl.full([BLOCK_M], NOTHING, tl.int64)
    for start in range(first, last, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        score = scores(
            queries, row, rows, query_stride, query_norms, bank, column, last, bank_stride, bank_norms, D, BLOCK_K,
            PRECISION,
        )  # fmt: skip
        keys = tl.where((column < last)[None, :], key_of(score, column[None, :]), NOTHING)
        # Once the best are good, few tiles have anything to add.
        better = (keys > bar[:, None]) & (row < rows)[:, None]
        if tl.max(tl.max(better.to(tl.int32), axis=1), axis=0) > 0:
            # The larger halves of a rising and a falling sequence rise and fall: one merge sorts them.
            best = tl.bitonic_merge(tl.maximum(best, tl.topk(keys, K)))
            bar = tl.min(best, axis=1)
    pointers = best_keys + (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * K + tl.arange(0, K)[None, :]
    tl.store(pointers, best, mask=(row < rows)[:, None])


@triton.jit
def topk_merge_kernel(
    best_keys, values, indices, rows, k, shares, K: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """Values and indices [rows, k], descending, from the best of every share of the bank."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = (row < rows)[:, None]
    rank = K - 1 - tl.arange(0, K)
    best = tl.load(best_keys + row.to(tl.int64)[:, None] * K + (K - 1 - rank)[None, :], mask=there, other=0)
    for share in range(1, shares):
        position = row.to(tl.int64) + rows * share
        more = tl.load(best_keys + position[:, None] * K + rank[None, :], mask=there, other=0)
        best = tl.bitonic_merge(tl.maximum(best, more))
    value = turn((best >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    place = row.to(tl.int64)[:, None] * k + rank[None, :]
    tl.store(values + place, value.to(values.dtype.element_ty), mask=there & (rank < k)[None, :])
    tl.store(indices + place, (best & LAST) ^ LAST, mask=there & (rank < k)[None, :])
