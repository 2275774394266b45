"""What the contrastive Triton kernels say of a pair. Tiles of the [M, N] matrices live in registers only.

A tile is [own rows, other rows]: the program keeps its own rows and runs over the others. Everything a pair needs is
made from one value per row of either side, so every argument of the helpers is a [rows, 1] column or a [1, rows] row.

``dot`` is <a_i, b_j> after normalisation, ``sharpness`` = log2(e) / temperature: exponentials are ``exp2``. With
BOUNDED (unit rows and sharpness <= 58, so that exp2(-2 * sharpness) is a normal number) all pairs share the offset 1,
and one exponential serves both rows of a pair; otherwise each row has its own offset, a running maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sharpness_of(sharpness, ON_DEVICE: tl.constexpr):
    """log2(e) / temperature: given as it is, or as a pointer to the temperature."""
    if ON_DEVICE:
        return tl.div_rn(LOG2E, tl.load(sharpness).to(tl.float32))
    else:
        return sharpness


@triton.jit
def relation(
    anchor, candidate, self_offset, positive_offset, anchor_positive, anchor_group, candidate_group, SELF: tl.constexpr,
    OFFSET: tl.constexpr, INDEX: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """(the pair is one and the same row, it is a positive) before any rule on false negatives."""
    nothing = (anchor < 0) & (candidate < 0)
    itself = nothing
    positive = nothing
    if SELF:
        itself = candidate == anchor + self_offset
    if OFFSET:
        positive = candidate == anchor + positive_offset
    if INDEX:
        positive = positive | (candidate == anchor_positive)
    if GROUPS:
        positive = positive | (anchor_group == candidate_group)
    if SELF:
        positive = positive & (candidate != anchor + self_offset)
    return itself, positive


@triton.jit
def false_negatives(
    cosine, anchor_threshold, anchor_cluster, candidate_cluster, THRESHOLD: tl.constexpr, CLUSTERS: tl.constexpr,
    ALL_RULES: tl.constexpr,
):  # fmt: skip
    """Whether the rules call the pair a false negative; true positives and the row itself are for the caller."""
    if THRESHOLD and CLUSTERS:
        known = (anchor_cluster >= 0) & (anchor_cluster == candidate_cluster)
        if ALL_RULES:
            return (cosine > anchor_threshold) & known
        else:
            return (cosine > anchor_threshold) | known
    elif THRESHOLD:
        return cosine > anchor_threshold
    else:
        return (anchor_cluster >= 0) & (anchor_cluster == candidate_cluster)
