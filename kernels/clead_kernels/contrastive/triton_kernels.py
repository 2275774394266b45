"""The contrastive family's Triton kernels. Tiles of the [M, N] matrices live in registers only.

A tile is [own rows, other rows]: the program keeps its own rows and runs over the others. Everything a pair needs is
made from one value per row of either side, so every argument of the helpers is a [rows, 1] column or a [1, rows] row.

Normalisation: half-precision rows meet raw and the dot product is scaled by both inverse norms, so nothing is rounded
twice; float32 rows are scaled as they are loaded (UNIT), where the rounding errors of their elements average out.

``dot`` is <a_i, b_j> after normalisation, ``sharpness`` = log2(e) / temperature: exponentials are ``exp2``. With
BOUNDED (unit rows and sharpness <= 58, so that exp2(-2 * sharpness) is a normal number) all pairs share the offset 1,
and one exponential serves both rows of a pair; otherwise each row has its own offset, a running maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1e-12)
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
def load_rows(x, index, count, stride, D: tl.constexpr, first, WIDTH: tl.constexpr):
    """Dimensions first ... first + WIDTH: [rows, WIDTH], zero beyond the last row and the last dimension."""
    dims = first + tl.arange(0, WIDTH)
    pointers = x + index.to(tl.int64)[:, None] * stride + dims[None, :]
    if D % WIDTH == 0:
        return tl.load(pointers, mask=(index < count)[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=(index < count)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """a @ b.T + acc in float32. "exact" is for the interpreter, which multiplies bfloat16 wrongly."""
    if PRECISION == "exact":
        return tl.dot(a.to(tl.float32), tl.trans(b).to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, tl.trans(b), acc, input_precision="ieee")


@triton.jit
def dots(
    x, y, own, index, own_count, own_stride, own_norm, other, column, other_count, other_stride, other_norm,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All dot products of a tile: of the rows x and y at hand, or BLOCK_K dimensions at a time."""
    dot = tl.zeros([index.shape[0], column.shape[0]], tl.float32)
    if BLOCK_K == BLOCK_D:
        dot = matmul(x, y, dot, PRECISION)
    else:
        for first in range(0, D, BLOCK_K):
            x_part = load_rows(own, index, own_count, own_stride, D, first, BLOCK_K)
            y_part = load_rows(other, column, other_count, other_stride, D, first, BLOCK_K)
            if UNIT:
                x_part = x_part * own_norm
                y_part = y_part * other_norm[:, None]
            dot = matmul(x_part, y_part, dot, PRECISION)
    return dot


@triton.jit
def squared_norm(x):
    """Of each row, in float32."""
    x = x.to(tl.float32)
    return tl.sum(x * x, axis=1)


@triton.jit
def inverse_norm(x):
    """1 / max(|x|, 1e-12) of each row, rounded once: an error here moves all logits of a row by the same factor."""
    norm = tl.sqrt(squared_norm(x).to(tl.float64))
    return (1.0 / tl.maximum(norm, TINY)).to(tl.float32)


@triton.jit
def softplus2(x):
    """log2(1 + 2^x) with full relative accuracy for x -> -inf, where the hardware's log2 has none."""
    u = tl.exp2(-tl.abs(x))
    z = u / (2.0 + u)  # log(1 + u) = 2 atanh(z), z <= 1/3
    q = z * z
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0.0) + (2.0 * LOG2E) * z * series


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


@triton.jit
def inverse_norms_kernel(
    x, out, count, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """1 / max(|x|, 1e-12) of each row."""
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(out + index, inverse_norm(load_rows(x, index, count, stride, D, 0, BLOCK_D)), mask=index < count)


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
def prepare_kernel(
    anchors, norms, statistics, grad_loss, coefficients, rows, stride, grad_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What the backward needs of each anchor: its inverse norm, and ``coefficients`` [3, M] (see ``load_side``)."""
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < rows
    if norms is not None:
        tl.store(norms + index, inverse_norm(load_rows(anchors, index, rows, stride, D, 0, BLOCK_D)), mask=there)
    g = tl.load(grad_loss + index.to(tl.int64) * grad_stride, mask=there, other=0.0)
    n = tl.load(statistics + index, mask=there, other=0.0)
    p = tl.load(statistics + rows + index, mask=there, other=0.0)
    total = tl.load(statistics + 3 * rows + index, mask=there, other=1.0)
    number = tl.load(statistics + 4 * rows + index, mask=there, other=0.0)
    counts = number > 0.0
    alpha = tl.where(counts, g / total, 0.0)
    # A single positive gets minus the mass of the negatives, not softmax - 1: nothing cancels.
    mass = 1.0 / (1.0 + tl.exp2((p - n) * LOG2E))
    rho = g * tl.where(number > 1.0, 1.0 / tl.maximum(number, 1.0), mass)
    tl.store(coefficients + index, alpha, mask=there)
    tl.store(coefficients + rows + index, tl.where(number > 1.0, alpha, 0.0), mask=there)
    tl.store(coefficients + 2 * rows + index, tl.where(counts, rho, 0.0), mask=there)


@triton.jit
def load_side(
    coefficients, statistics, threshold, index, rows, threshold_stride, MULTIPLE: tl.constexpr, BOUNDED: tl.constexpr,
    THRESHOLD: tl.constexpr,
):  # fmt: skip
    """(alpha, among, rho, offset, threshold) of anchors.

    d loss_i / d s_ij = e_ij alpha_i on negatives and e_ij among_i - rho_i on positives.
    """
    there = index < rows
    alpha = tl.load(coefficients + index, mask=there, other=0.0)
    rho = tl.load(coefficients + 2 * rows + index, mask=there, other=0.0)
    among = alpha
    offset = alpha
    cut = alpha
    if MULTIPLE:
        among = tl.load(coefficients + rows + index, mask=there, other=0.0)
    if not BOUNDED:
        offset = tl.load(statistics + 2 * rows + index, mask=there, other=0.0)
    if THRESHOLD == 1:
        cut = tl.full([index.shape[0]], threshold, tl.float32)
    if THRESHOLD == 2:
        cut = tl.load(threshold + index.to(tl.int64) * threshold_stride, mask=there, other=0.0)
    return alpha, among, rho, offset, cut


@triton.jit
def exponential(dot, offset, k, BOUNDED: tl.constexpr):
    """e_ij: against the common offset 1, or against the anchor's own (which excluded pairs may exceed by far)."""
    if BOUNDED:
        return tl.exp2(k * (dot - 1.0))
    else:
        exponent = k * (dot - offset)
        return tl.exp2(tl.where(exponent > 126.0, 126.0, exponent))  # tl.minimum would lose a NaN


@triton.jit
def coefficients_of(
    positive, false, alpha, among, rho, weight, MULTIPLE: tl.constexpr, TREATMENT: tl.constexpr
):  # fmt: skip
    """(factor of e, what is subtracted) for one direction of the pair."""
    if TREATMENT == "attract":
        positive = positive | false
    factor = alpha
    if TREATMENT == "eliminate":
        factor = tl.where(false, 0.0, factor)
    if TREATMENT == "weight":
        factor = tl.where(false, factor * weight, factor)
    factor = tl.where(positive, among if MULTIPLE else 0.0, factor)
    return factor, tl.where(positive, rho, 0.0)


@triton.jit
def backward_kernel(
    own, other, own_norms, other_norms, sharpness, own_count, other_count, own_stride, other_stride,
    self_offset, positive_offset, positive_index, own_groups, other_groups, threshold, threshold_stride, own_clusters,
    other_clusters, weight, statistics, coefficients, out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, SIDES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M own rows, over all other rows.

    SIDES says which rows are anchors: "own" (the gradient of the anchors), "other" (of the candidates), or "both":
    one set of rows with positives by groups, where T_ij = G_ij + G_ji is made from one dot product.
    """
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < own_count
    k = sharpness_of(sharpness, ON_DEVICE)
    own_norm = 0.0
    own_positive = 0
    own_group = 0
    own_cluster = 0
    if own_norms is not None:
        own_norm = tl.load(own_norms + index, mask=there, other=0.0)[:, None]
    x = 0.0
    if BLOCK_K == BLOCK_D:
        x = load_rows(own, index, own_count, own_stride, D, 0, BLOCK_D)
        if UNIT:
            x = x * own_norm
    if positive_index is not None and SIDES == "own":
        own_positive = tl.load(positive_index + index, mask=there, other=-1)[:, None]
    if own_groups is not None:
        own_group = tl.load(own_groups + index, mask=there, other=0)[:, None]
    if own_clusters is not None:
        own_cluster = tl.load(own_clusters + index, mask=there, other=-1)[:, None]
    if SIDES != "other":
        own_alpha, own_among, own_rho, own_offset, own_cut = load_side(
            coefficients, statistics, threshold, index, own_count, threshold_stride, MULTIPLE, BOUNDED, THRESHOLD
        )
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    for start in range(0, other_count, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = column < other_count
        y = load_rows(other, column, other_count, other_stride, D, 0, BLOCK_D)
        other_norm = 0.0
        if other_norms is not None:
            other_norm = tl.load(other_norms + column, mask=inside, other=0.0)
        if UNIT:
            y = y * other_norm[:, None]
        dot = dots(
            x, y, own, index, own_count, own_stride, own_norm, other, column, other_count, other_stride, other_norm,
            D, BLOCK_D, BLOCK_K, UNIT, PRECISION,
        )  # fmt: skip
        cosine = dot
        if other_norms is not None and not UNIT:
            cosine = dot * (own_norm * other_norm[None, :])
            if NORMALIZE:
                dot = cosine
        other_positive = 0
        other_group = 0
        other_cluster = 0
        if positive_index is not None and SIDES == "other":
            other_positive = tl.load(positive_index + column, mask=inside, other=-1)[None, :]
        if own_groups is not None:
            other_group = tl.load(other_groups + column, mask=inside, other=0)[None, :]
        if own_clusters is not None:
            other_cluster = tl.load(other_clusters + column, mask=inside, other=-1)[None, :]
        if SIDES == "other":
            itself, positive = relation(
                column[None, :], index[:, None], self_offset, positive_offset, other_positive, other_group, own_group,
                SELF, OFFSET, positive_index is not None, own_groups is not None,
            )  # fmt: skip
        else:
            itself, positive = relation(
                index[:, None], column[None, :], self_offset, positive_offset, own_positive, own_group, other_group,
                SELF, OFFSET, positive_index is not None, own_groups is not None,
            )  # fmt: skip

        if SIDES != "own":
            alpha, among, rho, offset, cut = load_side(
                coefficients, statistics, threshold, column, other_count, threshold_stride, MULTIPLE, BOUNDED, THRESHOLD
            )
            false = positive
            if TREATMENT != "none":
                false = (positive == 0) & false_negatives(
                    cosine, cut[None, :], other_cluster, own_cluster, THRESHOLD != 0, own_clusters is not None,
                    ALL_RULES,
                )  # fmt: skip
            e = exponential(dot, offset[None, :], k, BOUNDED)
            factor, subtracted = coefficients_of(
                positive, false, alpha[None, :], among[None, :], rho[None, :], weight, MULTIPLE, TREATMENT
            )
        if SIDES != "other":
            own_false = positive
            if TREATMENT != "none":
                own_false = (positive == 0) & false_negatives(
                    cosine, own_cut[:, None], own_cluster, other_cluster, THRESHOLD != 0, own_clusters is not None,
                    ALL_RULES,
                )  # fmt: skip
            own_e = exponential(dot, own_offset[:, None], k, BOUNDED)
            own_factor, own_subtracted = coefficients_of(
                positive, own_false, own_alpha[:, None], own_among[:, None], own_rho[:, None], weight, MULTIPLE,
                TREATMENT,
            )  # fmt: skip
        if SIDES == "own":
            grad = own_e * own_factor - own_subtracted
        elif SIDES == "other":
            grad = e * factor - subtracted
        elif BOUNDED:
            grad = e * (factor + own_factor) - (subtracted + own_subtracted)
        else:
            grad = e * factor + own_e * own_factor - (subtracted + own_subtracted)
        if SELF:
            grad = tl.where(itself, 0.0, grad)
        if NORMALIZE and not UNIT:
            grad = grad * other_norm[None, :]
        # Rows beyond the last are zero in y, whatever their grad.
        if PRECISION == "exact":
            acc = tl.dot(grad, y.to(tl.float32), acc, input_precision="ieee")
        elif PRECISION == "ieee":
            acc = tl.dot(grad.to(y.dtype), y, acc, input_precision="ieee")
        else:
            acc = tl.dot(grad, y.to(tl.float32), acc, input_precision=PRECISION)

    acc = acc * (k * LN2)
    if NORMALIZE:
        row = load_rows(own, index, own_count, own_stride, D, 0, BLOCK_D).to(tl.float32)
        grown = tl.sqrt_rn(squared_norm(row)) >= TINY
        row = row * own_norm
        radial = tl.sum(row * acc, axis=1)[:, None]
        acc = tl.where(grown[:, None], own_norm * (acc - row * radial), 0.0)
    dims = tl.arange(0, BLOCK_D)
    pointers = out + index.to(tl.int64)[:, None] * D + dims[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=there[:, None] & (dims < D)[None, :])
