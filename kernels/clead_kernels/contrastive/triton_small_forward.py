"""The contrastive forward for few rows, one launch: norms, one pass over all pairs, losses, and their reduction.

Every program normalises the candidates it meets itself, which costs less than the launch that would do it once. Sums
over pairs stay one per tile column until the end: no reduction within a tile stands in the loop. The program that
finishes last adds up what all of them left, in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import dots, load_rows, squared_norm
from .triton_forms import softplus2
from .triton_pairs import LN2, false_negatives, sharpness_of
from .triton_partials import gathered
from .triton_small_rows import (
    ANYWHERE,
    NUMBERS,
    PARTIALS,
    ROWS,
    SHARE,
    inverse_norms_of,
    marks,
    reciprocal_root,
)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ANYWHERE)
def small_forward_kernel(
    anchors, candidates, sharpness, rows, columns, shift, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, row_weights, share, loss, statistics, counter,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    POSITIVES: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, SLOPE: tl.constexpr, SUM_POSITIVES: tl.constexpr, REDUCTION: tl.constexpr,
    SETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Losses of BLOCK_M anchors, and what the backward needs of them.

    SETS: "one" set of rows that meets itself, "two" sets, or "mirrored": two sets, in whose second half of the programs
    the candidates are the anchors. ``statistics``: see ``small``. POSITIVES: see ``marks``.
    """
    block = tl.program_id(0)
    values = statistics + ROWS
    if SETS == "mirrored":  # both sets are of one size
        half = tl.num_programs(0) // 2
        second = block >= half
        block = tl.where(second, block - half, block)
        values = tl.where(second, values + 6 * rows, values)
        anchors, candidates = tl.where(second, candidates, anchors), tl.where(second, anchors, candidates)
        if clusters is not None:
            clusters, candidate_clusters = (
                tl.where(second, candidate_clusters, clusters),
                tl.where(second, clusters, candidate_clusters),
            )
    anchor = block * BLOCK_M + tl.arange(0, BLOCK_M)
    there = anchor < rows
    k = sharpness_of(sharpness, ON_DEVICE)
    anchor_norm = tl.full([BLOCK_M], 1.0, tl.float32)
    if NORMALIZE or THRESHOLD != 0:
        anchor_norm = inverse_norms_of(anchors, anchor, rows, D, BLOCK_D, BLOCK_K, UNIT)
        tl.store(values + 5 * rows + anchor, anchor_norm, mask=there)
    anchor_norm = anchor_norm[:, None]
    a = 0.0
    if BLOCK_K == BLOCK_D:
        a = load_rows(anchors, anchor, rows, D, D, 0, BLOCK_D)
        if UNIT:
            a = a * anchor_norm
    anchor_mark = marks(anchor, rows, rows, columns, shift, groups, POSITIVES, True)[:, None]
    anchor_threshold = 0.0
    anchor_cluster = 0
    if THRESHOLD == 1:
        anchor_threshold = threshold
    if THRESHOLD == 2:
        cuts = tl.load(threshold + anchor * threshold_stride, mask=there, other=0.0)
        anchor_threshold = cuts.to(tl.float32)[:, None]
    if clusters is not None:
        anchor_cluster = tl.load(clusters + anchor, mask=there, other=-1)[:, None]

    start_offset = 1.0 if BOUNDED else float("-inf")
    negative_offset = tl.full([BLOCK_M, BLOCK_N], start_offset, tl.float32)
    positive_offset = tl.full([BLOCK_M, BLOCK_N], start_offset, tl.float32)
    negative_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    positive_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    negative_moment = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    positive_moment = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    positive_dots = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    positives = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)

    for start in range(0, columns, BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        inside = candidate < columns
        b = 0.0
        candidate_norm = 0.0
        if BLOCK_K == BLOCK_D:
            b = load_rows(candidates, candidate, columns, D, D, 0, BLOCK_D)
        if NORMALIZE or THRESHOLD != 0:
            if BLOCK_K == BLOCK_D:
                candidate_norm = reciprocal_root(squared_norm(b), UNIT)
            else:
                candidate_norm = inverse_norms_of(candidates, candidate, columns, D, BLOCK_D, BLOCK_K, UNIT)
            if SETS == "two":
                tl.store(values + 6 * rows + 5 * columns + candidate, candidate_norm, mask=inside & (block == 0))
            if UNIT and BLOCK_K == BLOCK_D:
                b = b * candidate_norm[:, None]
        dot = dots(
            a, b, anchors, anchor, rows, D, anchor_norm, candidates, candidate, columns, D, candidate_norm, D, BLOCK_D,
            BLOCK_K, UNIT, PRECISION,
        )  # fmt: skip
        cosine = dot
        if (NORMALIZE or THRESHOLD != 0) and not UNIT:
            cosine = dot * (anchor_norm * candidate_norm[None, :])  # rounded alike for (i, j) and (j, i)
            if NORMALIZE:
                dot = cosine
        mark = marks(candidate, columns, rows, columns, shift, candidate_groups, POSITIVES, False)[None, :]
        positive = anchor_mark == mark
        if POSITIVES == "groups":
            positive = positive & inside[None, :]
        negative = positive == 0
        if SELF:
            itself = anchor[:, None] == candidate[None, :]
            positive = positive & (itself == 0)
            negative = negative & (itself == 0)
        if TREATMENT != "none" or not BOUNDED:
            negative = negative & inside[None, :]
        false = negative
        if TREATMENT != "none":
            candidate_cluster = 0
            if clusters is not None:
                candidate_cluster = tl.load(candidate_clusters + candidate, mask=inside, other=-1)[None, :]
            false = negative & false_negatives(
                cosine, anchor_threshold, anchor_cluster, candidate_cluster, THRESHOLD != 0, clusters is not None,
                ALL_RULES,
            )  # fmt: skip
            if TREATMENT == "attract":
                positive = positive | false
            if TREATMENT != "weight":
                negative = negative & (false == 0)

        if MULTIPLE:
            positives += positive.to(tl.int32)
        positive_dots += tl.where(positive, dot, 0.0)
        if BOUNDED:
            centred = dot - tl.where(inside, 1.0, float("inf"))[None, :]  # e is 0 beyond the last candidate
        else:
            negative_offset, negative_sum, negative_moment = raise_offset(
                negative_offset, negative_sum, negative_moment, tl.where(negative, dot, float("-inf")), k, SLOPE
            )
            offset = tl.where(negative_offset == float("-inf"), 0.0, negative_offset)
            if MULTIPLE:
                positive_offset, positive_sum, positive_moment = raise_offset(
                    positive_offset, positive_sum, positive_moment, tl.where(positive, dot, float("-inf")), k, SLOPE
                )
                offset = tl.where(positive, positive_offset, offset)
            centred = dot - offset
        e = tl.exp2(k * centred)
        of_negatives = tl.where(negative, e, 0.0)
        if TREATMENT == "weight":
            of_negatives = tl.where(false, of_negatives * weight, of_negatives)
        negative_sum += of_negatives
        if SLOPE:
            negative_moment += of_negatives * centred
        if MULTIPLE:
            of_positives = tl.where(positive, e, 0.0)
            positive_sum += of_positives
            if SLOPE:
                positive_moment += of_positives * centred

    n_offset, n_sum, n_moment = gathered(negative_offset, negative_sum, negative_moment, k, BOUNDED, SLOPE)
    # Differences of offsets and means are taken before they meet the sharpness: there they are small and exact.
    if MULTIPLE:
        number = tl.sum(positives, axis=1).to(tl.float32)
    else:
        number = tl.where(tl.reshape(anchor_mark, [BLOCK_M]) >= 0, 1.0, 0.0)
    mean = tl.sum(positive_dots, axis=1) / tl.maximum(number, 1.0)
    some_negative = n_sum != 0.0  # True for NaN, which must come out
    negative_log = tl.log2(tl.where(some_negative, n_sum, 1.0))
    n = tl.where(some_negative, k * (tl.where(some_negative, n_offset, 0.0) - mean) + negative_log, float("-inf"))
    # One positive is its own mean: offset and sum are exact, p is exactly 0.
    several = number > 1.0
    p_offset = mean
    p_sum = tl.full([BLOCK_M], 1.0, tl.float32)
    among = p_sum
    if MULTIPLE:
        p_offset, p_sum, among = gathered(positive_offset, positive_sum, positive_moment, k, BOUNDED, SLOPE)
        p_offset = tl.where(several, p_offset, mean)
        p_sum = tl.where(several, p_sum, 1.0)
    p = k * (p_offset - mean) + tl.log2(p_sum)
    reference = n_offset if BOUNDED else tl.maximum(n_offset, p_offset)
    total = tl.where(some_negative, n_sum * tl.exp2(k * (n_offset - reference)), 0.0)
    total += p_sum * tl.exp2(k * (p_offset - reference))
    mass = 1.0 / (1.0 + tl.exp2(p - n))  # of the negatives: what a single positive is pulled by
    valid = there & (number > 0.0)
    row_loss = (softplus2(n - p) + p) * LN2
    scale = tl.where(valid, 1.0, 0.0)
    if row_weights is not None:
        scale = tl.where(valid, tl.load(row_weights + anchor, mask=there, other=0.0).to(tl.float32), 0.0)
    if SUM_POSITIVES:
        scale = scale * number
    alpha = tl.where(valid, scale / total, 0.0)
    tl.store(values + anchor, alpha, mask=there)
    if MULTIPLE:
        tl.store(values + rows + anchor, tl.where(several, alpha, 0.0), mask=there)
    pull = tl.where(several, 1.0 / tl.maximum(number, 1.0), mass)
    tl.store(values + 2 * rows + anchor, tl.where(valid, scale * pull, 0.0), mask=there)
    if not BOUNDED:
        tl.store(values + 3 * rows + anchor, reference, mask=there)
    if SLOPE:
        slope = mass * (n_moment / tl.where(some_negative, n_sum, 1.0) + (n_offset - mean))
        slope = tl.where(some_negative, slope, 0.0)
        if MULTIPLE:
            slope += tl.where(several, (1.0 - mass) * (among / p_sum + (p_offset - mean)), 0.0)
        tl.store(values + 4 * rows + anchor, tl.where(valid, scale * slope, 0.0), mask=there)
    row_loss = tl.where(valid, scale * row_loss, 0.0)
    if REDUCTION == "none":
        tl.store(loss + anchor, row_loss, mask=there)
    else:
        reduce(row_loss, valid, share, loss, statistics, counter, REDUCTION)


@triton.jit
def reduce(row_loss, valid, share, loss, statistics, counter, REDUCTION: tl.constexpr):
    """The reduced loss, by the program that finishes last; it leaves ``counter`` at 0 as it found it."""
    program = tl.program_id(0)
    tl.store(statistics + program, tl.sum(row_loss, axis=0))
    if REDUCTION == "mean_valid":
        tl.store(statistics + PARTIALS + program, tl.sum(valid.to(tl.float32), axis=0))
    tl.debug_barrier()
    finished = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    if finished == tl.num_programs(0) - 1:
        slot = tl.arange(0, PARTIALS)
        filled = slot < tl.num_programs(0)
        # Past the first-level cache, which may hold what stood there before.
        total = tl.sum(tl.load(statistics + slot, mask=filled, other=0.0, cache_modifier=".cg"), axis=0)
        if REDUCTION == "mean_valid":
            number = tl.load(statistics + PARTIALS + slot, mask=filled, other=0.0, cache_modifier=".cg")
            of_valid = 1.0 / tl.maximum(tl.sum(number, axis=0), 1.0)
            tl.store(statistics + SHARE, of_valid)
            tl.store(loss, total * of_valid)
        else:
            tl.store(loss, total * share)
        tl.atomic_xchg(counter, 0, sem="release", scope="gpu")


@triton.jit
def raise_offset(offset, total, moment, dot, k, SLOPE: tl.constexpr):
    """Raise the offsets of sum e and sum e * (dot - offset), each by itself, to ``dot`` where that is larger."""
    raised = tl.maximum(offset, dot)
    step = tl.where(offset == float("-inf"), 0.0, offset - raised)
    factor = tl.exp2(k * step)
    if SLOPE:
        moment = factor * (moment + step * total)
    return raised, total * factor, moment
