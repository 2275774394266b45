"""The contrastive backward in Triton: one pass over all pairs per gradient. See ``triton_pairs`` for the terms."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import accumulate, dots, inverse_norm, load_rows
from .triton_forms import form_gradient, load_form, scale_form
from .triton_gradient import as_column, as_row, direction, gradient_of, rejected, store_gradient, store_rows
from .triton_pairs import LN2, LOG2E, relation, sharpness_of
from .triton_tiles import common_cluster, without_itself


@triton.jit
def prepare_kernel(
    anchors, norms, statistics, grad_loss, coefficients, rows, stride, grad_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """What the backward needs of each anchor: its inverse norm, and ``coefficients`` [5, M].

    See ``load_side`` for the first three, which the plain form has, and ``load_form`` for the others.
    """
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < rows
    if norms is not None:
        tl.store(norms + index, inverse_norm(load_rows(anchors, index, rows, stride, D, 0, BLOCK_D)), mask=there)
    g = tl.load(grad_loss + index.to(tl.int64) * grad_stride, mask=there, other=0.0)
    if FORM == "plain":
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
    else:
        scale_form(coefficients, statistics, index, rows, g, FORM)


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
def backward_kernel(
    own, other, own_norms, other_norms, sharpness, own_count, other_count, own_stride, other_stride,
    self_offset, self_index, positive_offset, positive_index, own_groups, other_groups, threshold, threshold_stride,
    own_clusters, other_clusters, weight, statistics, coefficients, length, partials, out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    OFFSET: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, LEVELS: tl.constexpr, EACH: tl.constexpr, SIDES: tl.constexpr, FORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M own rows, over all other rows or, of several programs each, over ``length`` of them.

    Then what comes of each share goes to ``partials`` [shares, own, D], for ``gather_kernel``. SIDES says which rows
    are anchors: "own" (the gradient of the anchors), "other" (of the candidates), or "both": one set of rows with
    positives by groups, where T_ij = G_ij + G_ji is made from one dot product.
    """
    index = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < own_count
    k = sharpness_of(sharpness, ON_DEVICE)
    own_norm = 0.0
    own_self = 0
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
    if self_index is not None and SIDES == "own":
        own_self = tl.load(self_index + index, mask=there, other=-1)[:, None]
    if positive_index is not None and SIDES == "own":
        own_positive = tl.load(positive_index + index, mask=there, other=-1)[:, None]
    if own_groups is not None:
        own_group = tl.load(own_groups + index, mask=there, other=0)[:, None]
    if own_clusters is not None:
        own_cluster = tl.load(own_clusters + index, mask=there, other=-1)[:, None]
    if SIDES != "other":
        own_side = load_side(
            coefficients, statistics, threshold, index, own_count, threshold_stride, MULTIPLE, BOUNDED, THRESHOLD
        )
        if FORM != "plain":
            own_row = load_form(coefficients, statistics, index[:, None], own_count, FORM)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    first = tl.program_id(1) * length
    for start in range(first, tl.minimum(first + length, other_count), BLOCK_N):
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
        other_self = 0
        other_positive = 0
        other_group = 0
        other_cluster = 0
        if self_index is not None and SIDES == "other":
            other_self = tl.load(self_index + column, mask=inside, other=-1)[None, :]
        if positive_index is not None and SIDES == "other":
            other_positive = tl.load(positive_index + column, mask=inside, other=-1)[None, :]
        if own_groups is not None:
            other_group = tl.load(other_groups + column, mask=inside, other=0)[None, :]
        cluster = own_cluster
        if LEVELS > 1:
            cluster = common_cluster(own_clusters, index, own_count, other_clusters, column, other_count, LEVELS, EACH)
        elif own_clusters is not None:
            other_cluster = tl.load(other_clusters + column, mask=inside, other=-1)[None, :]
        if SIDES == "other":
            itself, positive = relation(
                column[None, :], index[:, None], self_offset, positive_offset, other_positive, other_group, own_group,
                SELF, OFFSET, positive_index is not None, own_groups is not None,
            )  # fmt: skip
            if self_index is not None:
                itself, positive = without_itself(itself, positive, other_self, index[:, None])
        else:
            itself, positive = relation(
                index[:, None], column[None, :], self_offset, positive_offset, own_positive, own_group, other_group,
                SELF, OFFSET, positive_index is not None, own_groups is not None,
            )  # fmt: skip
            if self_index is not None:
                itself, positive = without_itself(itself, positive, own_self, column[None, :])

        of_other = 0
        of_own = 0
        if SIDES != "own":
            side = as_row(
                load_side(
                    coefficients, statistics, threshold, column, other_count, threshold_stride, MULTIPLE, BOUNDED,
                    THRESHOLD,
                )
            )  # fmt: skip
            false = rejected(
                side, cosine, positive, other_cluster, cluster, THRESHOLD, own_clusters is not None, ALL_RULES,
                TREATMENT,
            )  # fmt: skip
            if FORM == "plain":
                of_other = direction(side, dot, positive, false, k, weight, BOUNDED, MULTIPLE, TREATMENT)
            else:
                row = load_form(coefficients, statistics, column[None, :], other_count, FORM)
                of_other = form_gradient(row, dot, positive, false, index[:, None], k, weight, BOUNDED, TREATMENT, FORM)
        if SIDES != "other":
            side = as_column(own_side)
            false = rejected(
                side, cosine, positive, cluster, other_cluster, THRESHOLD, own_clusters is not None, ALL_RULES,
                TREATMENT,
            )  # fmt: skip
            if FORM == "plain":
                of_own = direction(side, dot, positive, false, k, weight, BOUNDED, MULTIPLE, TREATMENT)
            else:
                of_own = form_gradient(
                    own_row, dot, positive, false, column[None, :], k, weight, BOUNDED, TREATMENT, FORM
                )
        grad = gradient_of(of_own, of_other, BOUNDED, SIDES, FORM)
        if SELF or self_index is not None:
            grad = tl.where(itself, 0.0, grad)
        if NORMALIZE and not UNIT:
            grad = grad * other_norm[None, :]
        acc = accumulate(grad, y, acc, PRECISION)

    acc = acc * (k * LN2)
    if tl.num_programs(1) == 1:
        store_gradient(acc, own, own_norm, index, own_count, own_stride, out, D, BLOCK_D, NORMALIZE)
    else:
        store_rows(acc, partials, index + tl.program_id(1) * own_count, there, D, BLOCK_D)
