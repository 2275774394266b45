"""The contrastive forward in Triton: one pass over all pairs. See ``triton_pairs`` for the terms."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import dots, load_rows
from .triton_pairs import LN2, LOG2E, false_negatives, relation, sharpness_of


@triton.jit
def forward_kernel(
    anchors, candidates, anchor_norms, candidate_norms, sharpness, rows, columns, anchor_stride, candidate_stride,
    self_offset, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride, clusters,
    candidate_clusters, weight, loss, count, statistics,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Loss, number of positives and the statistics of BLOCK_M anchors, over all candidates.

    ``statistics`` [6, M]: n and p of the reference; an offset o and sum_j k_ij exp((dot_ij - o) / temperature), the
    denominator, in which no digits are lost as they would be in its logarithm; the number of positives; with SLOPE
    sum_j d loss_i / d s_ij * (dot_ij - mean). MULTIPLE: a row may have several positives. THRESHOLD: 0 none, 1 a
    number, 2 one per row. TREATMENT of false negatives: "none" (no rule), "eliminate", "weight" or "attract".
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = anchor < rows
    k = sharpness_of(sharpness, ON_DEVICE)
    anchor_norm = 0.0
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

    start_offset = 1.0 if BOUNDED else float("-inf")
    negative_offset = tl.full([BLOCK_M], start_offset, tl.float32)
    positive_offset_ = tl.full([BLOCK_M], start_offset, tl.float32)
    negative_sum = tl.zeros([BLOCK_M], tl.float32)
    positive_sum = tl.zeros([BLOCK_M], tl.float32)
    negative_moment = tl.zeros([BLOCK_M], tl.float32)
    positive_moment = tl.zeros([BLOCK_M], tl.float32)
    positive_dots = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.int32)

    for start in range(0, columns, BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        inside = candidate < columns
        candidate_norm = 0.0
        if anchor_norms is not None:
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
        if anchor_norms is not None and not UNIT:
            cosine = dot * (anchor_norm * candidate_norm[None, :])  # rounded alike for (i, j) and (j, i)
            if NORMALIZE:
                dot = cosine
        candidate_group = 0
        candidate_cluster = 0
        if groups is not None:
            candidate_group = tl.load(candidate_groups + candidate, mask=inside, other=0)[None, :]
        if clusters is not None:
            candidate_cluster = tl.load(candidate_clusters + candidate, mask=inside, other=-1)[None, :]
        itself, positive = relation(
            anchor[:, None], candidate[None, :], self_offset, positive_offset, anchor_positive, anchor_group,
            candidate_group, SELF, OFFSET, positive_index is not None, groups is not None,
        )  # fmt: skip
        positive = positive & inside[None, :]
        negative = inside[None, :] & (positive == 0)
        if SELF:
            negative = negative & (itself == 0)
        false = negative
        if TREATMENT != "none":
            false = negative & false_negatives(
                cosine, anchor_threshold, anchor_cluster, candidate_cluster, THRESHOLD != 0, clusters is not None,
                ALL_RULES,
            )  # fmt: skip
            if TREATMENT == "attract":
                positive = positive | false
            if TREATMENT != "weight":
                negative = negative & (false == 0)

        positives += tl.sum(positive.to(tl.int32), axis=1)
        positive_dots += tl.sum(tl.where(positive, dot, 0.0), axis=1)
        if BOUNDED:
            centred = dot - 1.0
        else:
            negative_offset, negative_sum, negative_moment = move_offset(
                negative_offset, negative_sum, negative_moment, tl.where(negative, dot, float("-inf")), k, SLOPE
            )
            offset = tl.where(negative_offset == float("-inf"), 0.0, negative_offset)[:, None]
            if MULTIPLE:
                positive_offset_, positive_sum, positive_moment = move_offset(
                    positive_offset_, positive_sum, positive_moment, tl.where(positive, dot, float("-inf")), k, SLOPE
                )
                finite = tl.where(positive_offset_ == float("-inf"), 0.0, positive_offset_)[:, None]
                offset = tl.where(positive, finite, offset)
            centred = dot - offset
        e = tl.exp2(k * centred)
        of_negatives = tl.where(negative, e, 0.0)
        if TREATMENT == "weight":
            of_negatives = tl.where(false, of_negatives * weight, of_negatives)
        negative_sum += tl.sum(of_negatives, axis=1)
        if SLOPE:
            negative_moment += tl.sum(of_negatives * centred, axis=1)
        if MULTIPLE:
            of_positives = tl.where(positive, e, 0.0)
            positive_sum += tl.sum(of_positives, axis=1)
            if SLOPE:
                positive_moment += tl.sum(of_positives * centred, axis=1)

    # Differences of offsets and means are taken before they meet the sharpness: there they are small and exact.
    number = positives.to(tl.float32)
    mean = positive_dots / tl.maximum(number, 1.0)
    minus_inf = tl.full([BLOCK_M], float("-inf"), tl.float32)
    some_negative = negative_sum != 0.0  # True for NaN, which must come out
    negative_log = tl.log2(tl.where(some_negative, negative_sum, 1.0))
    n = tl.where(some_negative, k * (tl.where(some_negative, negative_offset, 0.0) - mean) + negative_log, minus_inf)
    # One positive is its own mean: offset and sum are exact, p is exactly 0.
    several = positives > 1
    if MULTIPLE:
        positive_offset_ = tl.where(several, positive_offset_, mean)
        positive_sum = tl.where(several, positive_sum, 1.0)
    else:
        positive_offset_ = mean
        positive_sum = tl.full([BLOCK_M], 1.0, tl.float32)
    p = k * (positive_offset_ - mean) + tl.log2(positive_sum)
    reference = negative_offset if BOUNDED else tl.maximum(negative_offset, positive_offset_)
    total = tl.where(some_negative, negative_sum * tl.exp2(k * (negative_offset - reference)), 0.0)
    total += positive_sum * tl.exp2(k * (positive_offset_ - reference))
    valid = positives > 0
    tl.store(loss + anchor, tl.where(valid, (softplus2(n - p) + p) * LN2, 0.0), mask=there)
    tl.store(count + anchor, positives.to(tl.int64), mask=there)
    tl.store(statistics + anchor, n * LN2, mask=there)
    tl.store(statistics + rows + anchor, tl.where(valid, p * LN2, minus_inf), mask=there)
    tl.store(statistics + 2 * rows + anchor, reference, mask=there)
    tl.store(statistics + 3 * rows + anchor, total, mask=there)
    tl.store(statistics + 4 * rows + anchor, number, mask=there)
    if SLOPE:
        mass = 1.0 / (1.0 + tl.exp2(p - n))
        slope = mass * (negative_moment / tl.where(some_negative, negative_sum, 1.0) + (negative_offset - mean))
        slope = tl.where(some_negative, slope, 0.0)
        if MULTIPLE:
            among = positive_moment / positive_sum + (positive_offset_ - mean)
            slope += tl.where(several, (1.0 - mass) * among, 0.0)
        tl.store(statistics + 5 * rows + anchor, tl.where(valid, slope, 0.0), mask=there)


@triton.jit
def move_offset(offset, total, moment, dot, k, SLOPE: tl.constexpr):
    """Raise the offset of sum e and sum e * (dot - offset) to the maximum of ``dot`` over a tile's row."""
    raised = tl.maximum(offset, tl.max(dot, axis=1))
    step = tl.where(offset == float("-inf"), 0.0, offset - raised)
    factor = tl.exp2(k * step)
    if SLOPE:
        moment = factor * (moment + step * total)
    return raised, total * factor, moment


@triton.jit
def softplus2(x):
    """log2(1 + 2^x) with full relative accuracy for x -> -inf, where the hardware's log2 has none."""
    u = tl.exp2(-tl.abs(x))
    z = u / (2.0 + u)  # log(1 + u) = 2 atanh(z), z <= 1/3
    q = z * z
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0.0) + (2.0 * LOG2E) * z * series
