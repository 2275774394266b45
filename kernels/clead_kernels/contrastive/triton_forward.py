"""The contrastive forward in Triton: one pass over all pairs. See ``triton_pairs`` for the terms."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_forms import finish, move_offset, softplus2, store_sums
from .triton_pairs import LN2, sharpness_of
from .triton_partials import add_partials, gather_partials, load_partials, store_partials
from .triton_tiles import anchor_side, anchor_tile


@triton.jit
def forward_kernel(
    anchors, candidates, anchor_norms, candidate_norms, sharpness, rows, columns, anchor_stride, candidate_stride,
    self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, length, partials, loss, count, statistics,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Loss, number of positives and the statistics of BLOCK_M anchors, over all candidates.

    Of several programs for each anchor, one sees ``length`` candidates, and its sums go to ``partials``, for
    ``close_kernel``.

    ``statistics`` [13, M]: n and p of the reference; an offset o and sum_j k_ij exp((dot_ij - o) / temperature), the
    denominator, in which no digits are lost as they would be in its logarithm; the number of positives; with SLOPE
    sum_j d loss_i / d s_ij * (dot_ij - mean). What the other rows hold, and those of a FORM other than "plain", says
    ``triton_forms``. MULTIPLE: a row may have several positives. THRESHOLD: 0 none, 1 a number, 2 one per row.
    TREATMENT of false negatives: "none" (no rule), "eliminate", "weight" or "attract".
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = sharpness_of(sharpness, ON_DEVICE)
    side = anchor_side(
        anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
        threshold_stride, clusters, D, BLOCK_D, BLOCK_K, UNIT, THRESHOLD,
    )  # fmt: skip
    start_offset = 1.0 if BOUNDED else float("-inf")
    negative_offset = tl.full([BLOCK_M], start_offset, tl.float32)
    positive_offset_ = tl.full([BLOCK_M], start_offset, tl.float32)
    negative_sum = tl.zeros([BLOCK_M], tl.float32)
    positive_sum = tl.zeros([BLOCK_M], tl.float32)
    negative_moment = tl.zeros([BLOCK_M], tl.float32)
    positive_moment = tl.zeros([BLOCK_M], tl.float32)
    positive_dots = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.int32)

    first = tl.program_id(1) * length
    for start in range(first, tl.minimum(first + length, columns), BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        dot, _, positive, negative, false = anchor_tile(
            side, anchors, anchor, rows, anchor_stride, candidates, candidate_norms, candidate, columns,
            candidate_stride, self_offset, self_index, positive_offset, positive_index, groups, candidate_groups,
            clusters, candidate_clusters, D, BLOCK_D, BLOCK_K, NORMALIZE, UNIT, SELF, OFFSET, THRESHOLD, ALL_RULES,
            TREATMENT, LEVELS, EACH, PRECISION,
        )  # fmt: skip
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

    sums = (
        negative_offset, negative_sum, negative_moment, positive_offset_, positive_sum, positive_moment,
        positive_dots, positives,
    )  # fmt: skip
    if tl.num_programs(1) == 1:
        close_rows(sums, k, loss, count, statistics, anchor, rows, BOUNDED, MULTIPLE, SLOPE, FORM)
    else:
        store_partials(sums, partials, anchor, rows, 8)


@triton.jit
def close_kernel(
    partials, shares, rows, sharpness, loss, count, statistics,
    BLOCK_M: tl.constexpr, SHARES: tl.constexpr, ON_DEVICE: tl.constexpr, BOUNDED: tl.constexpr,
    MULTIPLE: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """What ``forward_kernel`` makes of BLOCK_M anchors, from the sums of several programs."""
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = sharpness_of(sharpness, ON_DEVICE)
    negative_offset, negative_sum, negative_moment = gather_partials(
        partials, 0, anchor, rows, shares, k, BOUNDED, SHARES
    )
    positive_offset, positive_sum, positive_moment = gather_partials(
        partials, 3, anchor, rows, shares, k, BOUNDED, SHARES
    )
    positive_dots = add_partials(partials, 6, anchor, rows, shares, SHARES)
    positives = load_partials(partials, 7, anchor, rows, shares, 0.0, SHARES).to(tl.int32, bitcast=True)
    sums = (
        negative_offset, negative_sum, negative_moment, positive_offset, positive_sum, positive_moment,
        positive_dots, tl.sum(positives, axis=1),
    )  # fmt: skip
    close_rows(sums, k, loss, count, statistics, anchor, rows, BOUNDED, MULTIPLE, SLOPE, FORM)


@triton.jit
def close_rows(
    sums, k, loss, count, statistics, anchor, rows,
    BOUNDED: tl.constexpr, MULTIPLE: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Loss, number of positives and statistics of rows from their sums over all candidates."""
    there = anchor < rows
    (
        negative_offset, negative_sum, negative_moment, positive_offset_, positive_sum, positive_moment,
        positive_dots, positives,
    ) = sums  # fmt: skip
    # Differences of offsets and means are taken before they meet the sharpness: there they are small and exact.
    number = positives.to(tl.float32)
    mean = positive_dots / tl.maximum(number, 1.0)
    minus_inf = tl.full([anchor.shape[0]], float("-inf"), tl.float32)
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
        positive_sum = tl.full([anchor.shape[0]], 1.0, tl.float32)
    p = k * (positive_offset_ - mean) + tl.log2(positive_sum)
    reference = negative_offset if BOUNDED else tl.maximum(negative_offset, positive_offset_)
    total = tl.where(some_negative, negative_sum * tl.exp2(k * (negative_offset - reference)), 0.0)
    total += positive_sum * tl.exp2(k * (positive_offset_ - reference))
    valid = positives > 0
    tl.store(count + anchor, positives.to(tl.int64), mask=there)
    tl.store(statistics + anchor, n * LN2, mask=there)
    tl.store(statistics + rows + anchor, tl.where(valid, p * LN2, minus_inf), mask=there)
    tl.store(statistics + 4 * rows + anchor, number, mask=there)
    if FORM == "plain":
        tl.store(loss + anchor, tl.where(valid, (softplus2(n - p) + p) * LN2, 0.0), mask=there)
        tl.store(statistics + 2 * rows + anchor, reference, mask=there)
        tl.store(statistics + 3 * rows + anchor, total, mask=there)
        if SLOPE:
            mass = 1.0 / (1.0 + tl.exp2(p - n))
            slope = mass * (negative_moment / tl.where(some_negative, negative_sum, 1.0) + (negative_offset - mean))
            slope = tl.where(some_negative, slope, 0.0)
            if MULTIPLE:
                among = positive_moment / positive_sum + (positive_offset_ - mean)
                slope += tl.where(several, (1.0 - mass) * among, 0.0)
            tl.store(statistics + 5 * rows + anchor, tl.where(valid, slope, 0.0), mask=there)
    else:
        # Mean dots under e of the negatives and of the positives, less the mean positive one.
        of_negatives = negative_moment / tl.where(some_negative, negative_sum, 1.0) + (negative_offset - mean)
        of_negatives = tl.where(some_negative, of_negatives, 0.0)
        of_positives = tl.where(several, positive_moment / positive_sum + (positive_offset_ - mean), 0.0)
        negative_offset = tl.where(some_negative, negative_offset, 0.0)
        if FORM == "own" or FORM == "own inside" or FORM == "spread":
            store_sums(
                statistics, anchor, rows, negative_offset, negative_sum, positive_offset_, positive_sum, mean,
                of_negatives, of_positives,
            )  # fmt: skip
        else:
            share = tl.where(some_negative, tl.exp2(k * (negative_offset - reference)) / total, 0.0)
            finish(
                loss, statistics, anchor, rows, n, p, number, share, negative_offset, negative_sum, positive_offset_,
                positive_sum, of_negatives, of_positives, SLOPE, FORM,
            )  # fmt: skip
