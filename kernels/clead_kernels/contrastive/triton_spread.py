"""The second pass of the form "spread" over all pairs, in Triton: see ``triton_forms``."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_forms import load_sums, log1p_of, move_offset, softplus2, store_row
from .triton_pairs import LN2, sharpness_of
from .triton_partials import add_partials, gather_partials, load_partials, store_partials
from .triton_tiles import anchor_side, anchor_tile


@triton.jit
def spread_kernel(
    anchors, candidates, anchor_norms, candidate_norms, sharpness, rows, columns, anchor_stride, candidate_stride,
    self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, spread, length, partials, loss, statistics,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The term -sum log(1 - p_ij) over negatives, now that the denominators are known.

    Of several programs for each anchor, one sees ``length`` candidates, and its sums go to ``partials``, for
    ``spread_close_kernel``.
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = sharpness_of(sharpness, ON_DEVICE)
    side = anchor_side(
        anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
        threshold_stride, clusters, D, BLOCK_D, BLOCK_K, UNIT, THRESHOLD,
    )  # fmt: skip
    negative_offset, negative_sum, positive_offset_, positive_sum, mean, _negatives, _positives = load_sums(
        statistics, anchor, rows
    )
    first = tl.where(negative_sum != 0.0, tl.maximum(negative_offset, positive_offset_), positive_offset_)
    share = negative_sum * tl.exp2(tl.where(negative_sum != 0.0, k * (negative_offset - first), 0.0))
    share = 1.0 / (share + positive_sum * tl.exp2(k * (positive_offset_ - first)))
    logs = tl.zeros([BLOCK_M], tl.float32)
    odds = tl.zeros([BLOCK_M], tl.float32)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    others_offset = tl.full([BLOCK_M], float("-inf"), tl.float32)
    others = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], -1, tl.int32)
    top_dot = tl.full([BLOCK_M], float("-inf"), tl.float32)
    top_weight = tl.zeros([BLOCK_M], tl.float32)

    first_column = tl.program_id(1) * length
    for start in range(first_column, tl.minimum(first_column + length, columns), BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        dot, _, _, negative, false = anchor_tile(
            side, anchors, anchor, rows, anchor_stride, candidates, candidate_norms, candidate, columns,
            candidate_stride, self_offset, self_index, positive_offset, positive_index, groups, candidate_groups,
            clusters, candidate_clusters, D, BLOCK_D, BLOCK_K, NORMALIZE, UNIT, SELF, OFFSET, THRESHOLD, ALL_RULES,
            TREATMENT, LEVELS, EACH, PRECISION,
        )  # fmt: skip
        factor = tl.where(negative, 1.0, 0.0)
        if TREATMENT == "weight":
            factor = tl.where(false, weight, factor)
        exponent = tl.where(negative, k * (dot - first[:, None]), 0.0)
        probability = factor * tl.exp2(tl.where(exponent > 126.0, 126.0, exponent)) * share[:, None]
        is_top = negative & (probability > 0.5)
        top = tl.maximum(top, tl.max(tl.where(is_top, candidate[None, :], -1), axis=1))
        top_dot = tl.maximum(top_dot, tl.max(tl.where(is_top, dot, float("-inf")), axis=1))
        top_weight = tl.maximum(top_weight, tl.max(tl.where(is_top, factor, 0.0), axis=1))
        small = tl.where(is_top, 0.0, probability)
        ratio = small / (1.0 - small)
        logs += tl.sum(log1p_of(ratio), axis=1)
        odds += tl.sum(ratio, axis=1)
        rest = negative & (is_top == 0)
        others_offset, others, moment = move_offset(
            others_offset, others, moment, tl.where(rest, dot, float("-inf")), k, SLOPE
        )
        centred = dot - tl.where(others_offset == float("-inf"), 0.0, others_offset)[:, None]
        e = tl.where(rest, factor * tl.exp2(k * tl.where(rest, centred, 0.0)), 0.0)
        others += tl.sum(e, axis=1)
        if SLOPE:
            slopes += tl.sum(tl.where(negative, ratio * (dot - mean[:, None]), 0.0), axis=1)
            moment += tl.sum(tl.where(rest, e * centred, 0.0), axis=1)

    sums = (logs, odds, slopes, others_offset, others, moment, top, top_dot, top_weight)
    if tl.num_programs(1) == 1:
        close_spread(sums, k, spread, loss, statistics, anchor, rows, SLOPE)
    else:
        store_partials(sums, partials, anchor, rows, 9)


@triton.jit
def spread_close_kernel(
    partials, shares, rows, sharpness, spread, loss, statistics,
    BLOCK_M: tl.constexpr, SHARES: tl.constexpr, ON_DEVICE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """What ``spread_kernel`` makes of BLOCK_M anchors, from the sums of several programs."""
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = sharpness_of(sharpness, ON_DEVICE)
    others_offset, others, moment = gather_partials(partials, 3, anchor, rows, shares, k, False, SHARES)
    top_dot = load_partials(partials, 7, anchor, rows, shares, float("-inf"), SHARES)
    top = load_partials(partials, 6, anchor, rows, shares, 0.0, SHARES).to(tl.int32, bitcast=True)
    top_weight = load_partials(partials, 8, anchor, rows, shares, 0.0, SHARES)
    sums = (
        add_partials(partials, 0, anchor, rows, shares, SHARES),
        add_partials(partials, 1, anchor, rows, shares, SHARES),
        add_partials(partials, 2, anchor, rows, shares, SHARES),
        others_offset, others, moment,
        tl.max(tl.where(top_dot == float("-inf"), -1, top), axis=1),
        tl.max(top_dot, axis=1),
        tl.max(top_weight, axis=1),
    )  # fmt: skip
    close_spread(sums, k, spread, loss, statistics, anchor, rows, SLOPE)


@triton.jit
def close_spread(sums, k, spread, loss, statistics, anchor, rows, SLOPE: tl.constexpr):
    """Losses and statistics of rows from their sums over all candidates."""
    there = anchor < rows
    logs, odds, slopes, others_offset, others, moment, top, top_dot, top_weight = sums
    _offset, _sum, positive_offset_, positive_sum, mean, of_negatives, of_positives = load_sums(
        statistics, anchor, rows
    )
    number = tl.load(statistics + 4 * rows + anchor, mask=there, other=0.0)
    n = tl.load(statistics + anchor, mask=there, other=0.0) / LN2
    p = tl.load(statistics + rows + anchor, mask=there, other=0.0) / LN2
    has_top = top >= 0
    offset = tl.maximum(others_offset, positive_offset_)
    others_scale = tl.where(others > 0.0, tl.exp2(k * (others_offset - offset)), 0.0)
    positive_scale = tl.exp2(k * (positive_offset_ - offset))
    rest = others * others_scale + positive_sum * positive_scale
    log_top = k * (tl.where(has_top, top_dot, offset) - offset) + tl.log2(tl.where(has_top, top_weight, 1.0))
    log_odds = log_top - tl.log2(rest)
    of_top = tl.where(has_top, 1.0 / (1.0 + tl.exp2(-log_odds)), 0.0)
    denominator = rest + tl.where(has_top, tl.exp2(log_top), 0.0)
    share = 1.0 / denominator
    pull = of_top / rest
    several = number > 1.0
    alpha = share * (1.0 + spread * (1.0 - odds)) - spread * pull
    beyond = spread * (odds * share + pull)
    among = tl.where(several, share, 0.0) - beyond
    mass = 1.0 / (1.0 + tl.exp2(p - n))
    rho = tl.where(several, 1.0 / tl.maximum(number, 1.0), mass)
    by_top = of_top * (1.0 + spread * (1.0 - odds))
    of_others = others_scale * (moment + others * tl.where(others > 0.0, others_offset - mean, 0.0))
    of_others += positive_scale * positive_sum * of_positives
    slope = mass * of_negatives + tl.where(several, (1.0 - mass) * of_positives, 0.0)
    slope += spread * slopes - beyond * of_others
    slope += tl.where(has_top, spread * of_top * (1.0 - odds) * (top_dot - mean), 0.0)
    of_row = (softplus2(n - p) + p + spread * tl.where(has_top, softplus2(log_odds), 0.0)) * LN2 + spread * logs
    store_row(loss, statistics, anchor, rows, number > 0.0, of_row, alpha, among, rho, slope, offset, share, SLOPE)
    tl.store(statistics + 9 * rows + anchor, tl.where(number > 0.0, spread * share, 0.0), mask=there)
    tl.store(statistics + 10 * rows + anchor, tl.where(number > 0.0, by_top, 0.0), mask=there)
    tl.store(statistics + 11 * rows + anchor, top.to(tl.float32, bitcast=True), mask=there)
