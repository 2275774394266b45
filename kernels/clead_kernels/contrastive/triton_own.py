"""The second pass of the forms "own" and "own inside" over all pairs, in Triton: see ``triton_forms``."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_forms import load_sums, log1p_of, softplus2, store_row
from .triton_pairs import LN2, sharpness_of
from .triton_partials import add_partials, store_partials
from .triton_tiles import anchor_side, anchor_tile


@triton.jit
def own_kernel(
    anchors, candidates, anchor_norms, candidate_norms, sharpness, rows, columns, anchor_stride, candidate_stride,
    self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, length, partials, loss, statistics,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The forms "own" and "own inside": the positives once more, now that the sum N of the negatives is known.

    Of several programs for each anchor, one sees ``length`` candidates, and its sums go to ``partials``, for
    ``own_close_kernel``. With t = e^x / N of a positive, the mean of log(1 + 1 / t), or inside -log mean t / (1 + t).
    There t is divided by its largest value where that is below 1, so that the sum does not vanish: ``shift`` is the
    logarithm of that value.
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = sharpness_of(sharpness, ON_DEVICE)
    side = anchor_side(
        anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
        threshold_stride, clusters, D, BLOCK_D, BLOCK_K, UNIT, THRESHOLD,
    )  # fmt: skip
    negative_offset, _sum, _positive, mean, _dots, log_sum, shift = load_own(statistics, anchor, rows, k, BOUNDED, FORM)
    cap = tl.exp2(shift)
    losses = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    pull = tl.zeros([BLOCK_M], tl.float32)
    outside_sum = tl.zeros([BLOCK_M], tl.float32)
    slopes = tl.zeros([BLOCK_M], tl.float32)

    first = tl.program_id(1) * length
    for start in range(first, tl.minimum(first + length, columns), BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        dot, _, positive, _, _ = anchor_tile(
            side, anchors, anchor, rows, anchor_stride, candidates, candidate_norms, candidate, columns,
            candidate_stride, self_offset, self_index, positive_offset, positive_index, groups, candidate_groups,
            clusters, candidate_clusters, D, BLOCK_D, BLOCK_K, NORMALIZE, UNIT, SELF, OFFSET, THRESHOLD, ALL_RULES,
            TREATMENT, LEVELS, EACH, PRECISION,
        )  # fmt: skip
        log_ratio = k * (dot - negative_offset[:, None]) - log_sum[:, None]
        if FORM == "own inside":
            raised = log_ratio - shift[:, None]
            ratio = tl.exp2(tl.where(raised > 126.0, 126.0, raised))
            outside = 1.0 / (1.0 + ratio * cap[:, None])
            inside = ratio * outside
            total += tl.sum(tl.where(positive, inside, 0.0), axis=1)
            outside_sum += tl.sum(tl.where(positive, outside, 0.0), axis=1)
            force = tl.where(positive, inside * outside, 0.0)
        else:
            losses += tl.sum(tl.where(positive, softplus2(-log_ratio), 0.0), axis=1)
            force = tl.where(positive, 1.0 / (1.0 + tl.exp2(log_ratio)), 0.0)
        pull += tl.sum(force, axis=1)
        if SLOPE:
            slopes += tl.sum(tl.where(positive, force * (dot - mean[:, None]), 0.0), axis=1)

    sums = (losses, total, pull, outside_sum, slopes)
    if tl.num_programs(1) == 1:
        close_own(sums, k, loss, statistics, anchor, rows, BOUNDED, SLOPE, FORM)
    else:
        store_partials(sums, partials, anchor, rows, 5)


@triton.jit
def own_close_kernel(
    partials, shares, rows, sharpness, loss, statistics,
    BLOCK_M: tl.constexpr, SHARES: tl.constexpr, ON_DEVICE: tl.constexpr, BOUNDED: tl.constexpr, SLOPE: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """What ``own_kernel`` makes of BLOCK_M anchors, from the sums of several programs."""
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = (
        add_partials(partials, 0, anchor, rows, shares, SHARES),
        add_partials(partials, 1, anchor, rows, shares, SHARES),
        add_partials(partials, 2, anchor, rows, shares, SHARES),
        add_partials(partials, 3, anchor, rows, shares, SHARES),
        add_partials(partials, 4, anchor, rows, shares, SHARES),
    )
    close_own(sums, sharpness_of(sharpness, ON_DEVICE), loss, statistics, anchor, rows, BOUNDED, SLOPE, FORM)


@triton.jit
def load_own(statistics, anchor, rows, k, BOUNDED: tl.constexpr, FORM: tl.constexpr):
    """(offset and sum N of the negatives, offset of the positives, mean, mean dot of the negatives, log2 N, shift)."""
    negative_offset, negative_sum, positive_offset, _sum, mean, of_negatives, _moment = load_sums(
        statistics, anchor, rows
    )
    log_sum = tl.where(negative_sum != 0.0, tl.log2(negative_sum), -1e30)
    shift = tl.zeros([anchor.shape[0]], tl.float32)
    if FORM == "own inside" and not BOUNDED:
        largest = k * (positive_offset - negative_offset) - log_sum
        shift = tl.where(largest < 0.0, largest, 0.0)
    return negative_offset, negative_sum, positive_offset, mean, of_negatives, log_sum, shift


@triton.jit
def close_own(
    sums, k, loss, statistics, anchor, rows, BOUNDED: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr
):  # fmt: skip
    """Losses and statistics of rows from their sums over all candidates."""
    there = anchor < rows
    losses, total, pull, outside_sum, slopes = sums
    negative_offset, negative_sum, positive_offset, _mean, of_negatives, log_sum, shift = load_own(
        statistics, anchor, rows, k, BOUNDED, FORM
    )
    number = tl.load(statistics + 4 * rows + anchor, mask=there, other=0.0)
    some_negative = negative_sum != 0.0
    valid = number > 0.0
    if FORM == "own inside":
        rho = 1.0 / tl.where(valid, total, 1.0)
        # Where most of every probability is on its positive, the loss comes from what is not.
        complement = outside_sum / tl.maximum(number, 1.0)
        small = tl.where(complement < 0.5, complement, 0.0)
        apart = (tl.log2(tl.maximum(number, 1.0)) - tl.log2(tl.where(valid, total, 1.0)) - shift) * LN2
        of_row = tl.where(complement < 0.5, log1p_of(small / (1.0 - small)), apart)
    else:
        rho = 1.0 / tl.maximum(number, 1.0)
        of_row = losses * rho * LN2
    mass = pull * rho
    alpha = tl.where(some_negative, mass / tl.where(some_negative, negative_sum, 1.0), 0.0)
    rho = tl.where(some_negative, rho, 0.0)
    slope = mass * of_negatives - slopes * rho
    store_row(
        loss, statistics, anchor, rows, valid, of_row, alpha, alpha, rho, slope, negative_offset, positive_offset,
        SLOPE,
    )  # fmt: skip
    tl.store(statistics + 9 * rows + anchor, log_sum + shift, mask=there)
    tl.store(statistics + 10 * rows + anchor, tl.exp2(shift), mask=there)
