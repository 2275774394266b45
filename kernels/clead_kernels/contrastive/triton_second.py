"""The second pass over all pairs that some forms need, in Triton: see ``triton_forms``."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_forms import load_sums, log1p_of, move_offset, softplus2, store_row
from .triton_pairs import LN2, sharpness_of
from .triton_tiles import anchor_side, anchor_tile


@triton.jit
def own_kernel(
    anchors, candidates, anchor_norms, candidate_norms, sharpness, rows, columns, anchor_stride, candidate_stride,
    self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, loss, statistics,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The forms "own" and "own inside": the positives once more, now that the sum N of the negatives is known.

    With t = e^x / N of a positive, the mean of log(1 + 1 / t), or inside -log mean t / (1 + t). There t is divided by
    its largest value where that is below 1, so that the sum does not vanish: ``shift`` is the logarithm of that value.
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = anchor < rows
    k = sharpness_of(sharpness, ON_DEVICE)
    side = anchor_side(
        anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
        threshold_stride, clusters, D, BLOCK_D, BLOCK_K, UNIT, THRESHOLD,
    )  # fmt: skip
    negative_offset, negative_sum, positive_offset_, _sum, mean, of_negatives, _moment = load_sums(
        statistics, anchor, rows
    )
    number = tl.load(statistics + 4 * rows + anchor, mask=there, other=0.0)
    some_negative = negative_sum != 0.0
    log_sum = tl.where(some_negative, tl.log2(negative_sum), -1e30)
    shift = tl.zeros([BLOCK_M], tl.float32)
    if FORM == "own inside" and not BOUNDED:
        largest = k * (positive_offset_ - negative_offset) - log_sum
        shift = tl.where(largest < 0.0, largest, 0.0)
    cap = tl.exp2(shift)
    losses = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    pull = tl.zeros([BLOCK_M], tl.float32)
    outside_sum = tl.zeros([BLOCK_M], tl.float32)
    slopes = tl.zeros([BLOCK_M], tl.float32)

    for start in range(0, columns, BLOCK_N):
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
        loss, statistics, anchor, rows, valid, of_row, alpha, alpha, rho, slope, negative_offset, positive_offset_,
        SLOPE,
    )  # fmt: skip
    tl.store(statistics + 9 * rows + anchor, log_sum + shift, mask=there)
    tl.store(statistics + 10 * rows + anchor, cap, mask=there)


@triton.jit
def spread_kernel(
    anchors, candidates, anchor_norms, candidate_norms, sharpness, rows, columns, anchor_stride, candidate_stride,
    self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, spread, loss, statistics,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The term -sum log(1 - p_ij) over negatives, now that the denominators are known."""
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = anchor < rows
    k = sharpness_of(sharpness, ON_DEVICE)
    side = anchor_side(
        anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
        threshold_stride, clusters, D, BLOCK_D, BLOCK_K, UNIT, THRESHOLD,
    )  # fmt: skip
    negative_offset, negative_sum, positive_offset_, positive_sum, mean, of_negatives, of_positives = load_sums(
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

    for start in range(0, columns, BLOCK_N):
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
