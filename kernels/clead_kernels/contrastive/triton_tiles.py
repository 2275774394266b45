"""A tile of pairs as the kernels that own anchors see it: dot products, and what the rules say of each pair."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import dots, load_rows
from .triton_pairs import false_negatives, relation


@triton.jit
def anchor_side(
    anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
    threshold_stride, clusters,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, UNIT: tl.constexpr, THRESHOLD: tl.constexpr,
):  # fmt: skip
    """What a program keeps of its anchors: (rows, inverse norms, themselves, positive, group, threshold, cluster)."""
    there = anchor < rows
    anchor_norm = 0.0
    anchor_self = 0
    anchor_positive = 0
    anchor_group = 0
    anchor_threshold = 0.0
    anchor_cluster = 0
    if anchor_norms is not None:
        anchor_norm = tl.load(anchor_norms + anchor, mask=there, other=0.0)[:, None]
    a = 0.0
    if BLOCK_K == BLOCK_D:
        a = load_rows(anchors, anchor, rows, anchor_stride, D, 0, BLOCK_D)
        if UNIT:
            a = a * anchor_norm
    if self_index is not None:
        anchor_self = tl.load(self_index + anchor, mask=there, other=-1)[:, None]
    if positive_index is not None:
        anchor_positive = tl.load(positive_index + anchor, mask=there, other=-1)[:, None]
    if groups is not None:
        anchor_group = tl.load(groups + anchor, mask=there, other=0)[:, None]
    if THRESHOLD == 1:
        anchor_threshold = threshold
    if THRESHOLD == 2:
        anchor_threshold = tl.load(threshold + anchor.to(tl.int64) * threshold_stride, mask=there, other=0.0)[:, None]
    if clusters is not None:
        anchor_cluster = tl.load(clusters + anchor, mask=there, other=-1)[:, None]
    return a, anchor_norm, anchor_self, anchor_positive, anchor_group, anchor_threshold, anchor_cluster


@triton.jit
def anchor_tile(
    side, anchors, anchor, rows, anchor_stride, candidates, candidate_norms, candidate, columns, candidate_stride,
    self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, clusters, candidate_clusters,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr,
    SELF: tl.constexpr, OFFSET: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dot, cosine, positive, negative, false) of a tile [anchors, candidates].

    Attracted false negatives are positive, eliminated ones are not negative; beyond the last candidate all is False.
    """
    a, anchor_norm, anchor_self, anchor_positive, anchor_group, anchor_threshold, anchor_cluster = side
    inside = candidate < columns
    candidate_norm = 0.0
    if candidate_norms is not None:
        candidate_norm = tl.load(candidate_norms + candidate, mask=inside, other=0.0)
    b = 0.0
    if BLOCK_K == BLOCK_D:
        b = load_rows(candidates, candidate, columns, candidate_stride, D, 0, BLOCK_D)
        if UNIT:
            b = b * candidate_norm[:, None]
    dot = dots(
        a, b, anchors, anchor, rows, anchor_stride, anchor_norm, candidates, candidate, columns, candidate_stride,
        candidate_norm, D, BLOCK_D, BLOCK_K, UNIT, PRECISION,
    )  # fmt: skip
    cosine = dot
    if candidate_norms is not None and not UNIT:
        cosine = dot * (anchor_norm * candidate_norm[None, :])  # rounded alike for (i, j) and (j, i)
        if NORMALIZE:
            dot = cosine
    candidate_group = 0
    candidate_cluster = 0
    if groups is not None:
        candidate_group = tl.load(candidate_groups + candidate, mask=inside, other=0)[None, :]
    cluster = anchor_cluster
    if LEVELS > 1:
        cluster = common_cluster(clusters, anchor, rows, candidate_clusters, candidate, columns, LEVELS, EACH)
    elif clusters is not None:
        candidate_cluster = tl.load(candidate_clusters + candidate, mask=inside, other=-1)[None, :]
    itself, positive = relation(
        anchor[:, None], candidate[None, :], self_offset, positive_offset, anchor_positive, anchor_group,
        candidate_group, SELF, OFFSET, positive_index is not None, groups is not None,
    )  # fmt: skip
    if self_index is not None:
        itself, positive = without_itself(itself, positive, anchor_self, candidate[None, :])
    positive = positive & inside[None, :]
    negative = inside[None, :] & (positive == 0)
    if SELF or self_index is not None:
        negative = negative & (itself == 0)
    false = negative
    if TREATMENT != "none":
        false = negative & false_negatives(
            cosine, anchor_threshold, cluster, candidate_cluster, THRESHOLD != 0, clusters is not None, ALL_RULES
        )
        if TREATMENT == "attract":
            positive = positive | false
        if TREATMENT != "weight":
            negative = negative & (false == 0)
    return dot, cosine, positive, negative, false


@triton.jit
def without_itself(itself, positive, anchor_self, candidate):
    """The relation of a pair where a column given by index is the anchor itself."""
    same = candidate == anchor_self
    return itself | same, positive & (candidate != anchor_self)


@triton.jit
def common_cluster(
    own_clusters, own, own_count, other_clusters, other, other_count, LEVELS: tl.constexpr, EACH: tl.constexpr
):
    """0 where rows have a known label in common at one granularity (EACH: at all), -1 elsewhere: [own, other]."""
    labels = tl.load(own_clusters + own, mask=own < own_count, other=-1)[:, None]
    common = (labels >= 0) & (labels == tl.load(other_clusters + other, mask=other < other_count, other=-1)[None, :])
    for level in range(1, LEVELS):
        labels = tl.load(own_clusters + level * own_count + own, mask=own < own_count, other=-1)[:, None]
        others = tl.load(other_clusters + level * other_count + other, mask=other < other_count, other=-1)[None, :]
        same = (labels >= 0) & (labels == others)
        common = common & same if EACH else common | same
    return tl.where(common, 0, -1)
