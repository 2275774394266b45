"""What the contrastive backwards share: the gradient of a pair, and how that of a row leaves the program."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import TINY, load_rows, squared_norm
from .triton_pairs import false_negatives


@triton.jit
def as_column(side):
    """A direction of pairs whose anchors are the rows of the tile."""
    alpha, among, rho, offset, cut = side
    return alpha[:, None], among[:, None], rho[:, None], offset[:, None], cut[:, None]


@triton.jit
def as_row(side):
    """A direction of pairs whose anchors are the columns of the tile."""
    alpha, among, rho, offset, cut = side
    return alpha[None, :], among[None, :], rho[None, :], offset[None, :], cut[None, :]


@triton.jit
def rejected(
    side, cosine, positive, anchor_cluster, candidate_cluster, THRESHOLD: tl.constexpr, CLUSTERS: tl.constexpr,
    ALL_RULES: tl.constexpr, TREATMENT: tl.constexpr,
):  # fmt: skip
    """The false negatives of one direction; anything where there are no rules."""
    false = positive
    if TREATMENT != "none":
        false = (positive == 0) & false_negatives(
            cosine, side[4], anchor_cluster, candidate_cluster, THRESHOLD != 0, CLUSTERS, ALL_RULES
        )
    return false


@triton.jit
def direction(
    side, dot, positive, false, k, weight, BOUNDED: tl.constexpr, MULTIPLE: tl.constexpr, TREATMENT: tl.constexpr
):  # fmt: skip
    """(e, factor of it, what is subtracted) of one direction."""
    alpha, among, rho, offset, _ = side
    if TREATMENT == "attract":
        positive = positive | false
    factor = alpha
    if TREATMENT == "eliminate":
        factor = tl.where(false, 0.0, factor)
    if TREATMENT == "weight":
        factor = tl.where(false, factor * weight, factor)
    factor = tl.where(positive, among if MULTIPLE else 0.0, factor)
    return exponential(dot, offset, k, BOUNDED), factor, tl.where(positive, rho, 0.0)


@triton.jit
def exponential(dot, offset, k, BOUNDED: tl.constexpr):
    """e_ij: against the common offset 1, or against the anchor's own (which excluded pairs may exceed by far)."""
    if BOUNDED:
        return tl.exp2(k * (dot - 1.0))
    else:
        exponent = k * (dot - offset)
        return tl.exp2(tl.where(exponent > 126.0, 126.0, exponent))  # tl.minimum would lose a NaN


@triton.jit
def gradient_of(own, other, BOUNDED: tl.constexpr, SIDES: tl.constexpr, FORM: tl.constexpr):
    """d loss / d s_ij of a tile from its ``direction``s, or of a FORM other than "plain" from their gradients.

    SIDES "own" and "other" have one direction; "both" gives T_ij = G_ij + G_ji.
    """
    if FORM != "plain":
        return own if SIDES == "own" else other if SIDES == "other" else own + other
    elif SIDES == "both":
        e, factor, subtracted = own
        other_e, other_factor, other_subtracted = other
        if BOUNDED:
            return e * (factor + other_factor) - (subtracted + other_subtracted)
        else:
            return e * factor + other_e * other_factor - (subtracted + other_subtracted)
    else:
        e, factor, subtracted = own if SIDES == "own" else other
        return e * factor - subtracted


@triton.jit
def store_gradient(
    acc, own, own_norm, index, count, stride, out, D: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr
):  # fmt: skip
    """Take the gradient of normalised rows through their normalisation, to ``out`` [count, D]."""
    if NORMALIZE:
        row = load_rows(own, index, count, stride, D, 0, BLOCK_D).to(tl.float32)
        grown = tl.sqrt_rn(squared_norm(row)) >= TINY
        row = row * own_norm
        radial = tl.sum(row * acc, axis=1)[:, None]
        acc = tl.where(grown[:, None], own_norm * (acc - row * radial), 0.0)
    store_rows(acc, out, index, index < count, D, BLOCK_D)


@triton.jit
def store_rows(rows, out, position, there, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a tile to ``out`` [any, D]."""
    dims = tl.arange(0, BLOCK_D)
    pointers = out + position.to(tl.int64)[:, None] * D + dims[None, :]
    tl.store(pointers, rows.to(out.dtype.element_ty), mask=there[:, None] & (dims < D)[None, :])


@triton.jit
def gather_kernel(
    partials, shares, own_count, own, own_norms, own_stride, out, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M own rows from what the shares left of it before the normalisation, in the shares' order."""
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < own_count
    own_norm = 0.0
    if NORMALIZE:
        own_norm = tl.load(own_norms + index, mask=there, other=0.0)[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, shares, 4):
        for i in tl.static_range(4):  # four loads wait together
            share = first + i
            acc += load_rows(partials, index + share * own_count, own_count * shares, D, D, 0, BLOCK_D)
    store_gradient(acc, own, own_norm, index, own_count, own_stride, out, D, BLOCK_D, NORMALIZE)
