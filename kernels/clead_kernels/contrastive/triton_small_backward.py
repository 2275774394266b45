"""The contrastive backward for few rows, one launch: every gradient, through the normalisation, in its own dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import accumulate, dots, load_rows
from .triton_gradient import as_column, as_row, direction, gradient_of, rejected, store_gradient
from .triton_pairs import LN2, sharpness_of
from .triton_small_rows import ANYWHERE, NUMBERS, ROWS, SHARE, marks


@triton.jit(do_not_specialize=[*NUMBERS, "grad_stride"], do_not_specialize_on_alignment=ANYWHERE)
def small_backward_kernel(
    anchors, candidates, sharpness, rows, columns, shift, groups, candidate_groups, threshold, threshold_stride,
    clusters, candidate_clusters, weight, share, grad_loss, grad_stride, statistics, grad_anchors, grad_candidates,
    grad_temperature,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    POSITIVES: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, REDUCTION: tl.constexpr, SETS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs for BLOCK_M anchors each, then for BLOCK_M candidates, then one for the temperature: those asked for.

    SETS as in ``small_forward_kernel``: where both members of a pair are anchors, T_ij = G_ij + G_ji is made from one
    dot product.
    """
    program = tl.program_id(0)
    of_anchors = 0
    of_candidates = 0
    values = statistics + ROWS
    candidate_values = values
    if SETS != "one":
        candidate_values = values + 6 * rows
    if grad_anchors is not None:
        of_anchors = tl.cdiv(rows, BLOCK_M)
        if program < of_anchors:
            gradient(
                anchors, candidates, sharpness, rows, columns, shift, groups, candidate_groups, threshold,
                threshold_stride, clusters, candidate_clusters, weight, share, grad_loss, grad_stride, statistics,
                values, candidate_values, grad_anchors, program, D, BLOCK_D, BLOCK_M, BLOCK_N, BLOCK_K, ON_DEVICE,
                NORMALIZE, UNIT, BOUNDED, SELF, POSITIVES, MULTIPLE, THRESHOLD, ALL_RULES, TREATMENT, REDUCTION,
                "own" if SETS == "two" else "both", PRECISION,
            )  # fmt: skip
    if grad_candidates is not None:
        of_candidates = tl.cdiv(columns, BLOCK_M)
        if (program >= of_anchors) & (program < of_anchors + of_candidates):
            gradient(
                candidates, anchors, sharpness, columns, rows, shift, candidate_groups, groups, threshold,
                threshold_stride, candidate_clusters, clusters, weight, share, grad_loss, grad_stride, statistics,
                candidate_values, values, grad_candidates, program - of_anchors, D, BLOCK_D, BLOCK_M, BLOCK_N, BLOCK_K,
                ON_DEVICE, NORMALIZE, UNIT, BOUNDED, SELF, POSITIVES, MULTIPLE, THRESHOLD, ALL_RULES, TREATMENT,
                REDUCTION, "other" if SETS == "two" else "both", PRECISION,
            )  # fmt: skip
    if grad_temperature is not None:  # noqa: SIM102 - this is decided while compiling, the next line is not
        if program == of_anchors + of_candidates:
            slopes = tl.zeros([1024], tl.float32)
            for start in range(0, rows, 1024):
                index = start + tl.arange(0, 1024)
                there = index < rows
                slope = tl.load(values + 4 * rows + index, mask=there, other=0.0)
                if SETS == "mirrored":
                    slope += tl.load(candidate_values + 4 * rows + index, mask=there, other=0.0)
                if REDUCTION == "none":
                    slope = slope * tl.load(grad_loss + index * grad_stride, mask=there, other=0.0)
                slopes += slope
            temperature = tl.load(sharpness).to(tl.float32)
            upstream = upstream_of(grad_loss, statistics, share, REDUCTION)
            grad = -upstream * tl.sum(slopes, axis=0) / (temperature * temperature)
            tl.store(grad_temperature, grad.to(grad_temperature.dtype.element_ty))


@triton.jit
def upstream_of(grad_loss, statistics, share, REDUCTION: tl.constexpr):
    """The factor of all rows: 1 where each has its own."""
    if REDUCTION == "none":
        return 1.0
    elif REDUCTION == "mean_valid":
        return tl.load(grad_loss) * tl.load(statistics + SHARE)
    else:
        return tl.load(grad_loss) * share


@triton.jit
def load_anchors(
    values, grad_loss, grad_stride, threshold, index, rows, threshold_stride, MULTIPLE: tl.constexpr,
    BOUNDED: tl.constexpr, THRESHOLD: tl.constexpr, REDUCTION: tl.constexpr,
):  # fmt: skip
    """(alpha, among, rho, offset, threshold) of anchors, as ``triton_backward.load_side`` has them."""
    there = index < rows
    values = values + index
    alpha = tl.load(values, mask=there, other=0.0)
    rho = tl.load(values + 2 * rows, mask=there, other=0.0)
    upstream = alpha
    if REDUCTION == "none":
        upstream = tl.load(grad_loss + index * grad_stride, mask=there, other=0.0)
        alpha = alpha * upstream
        rho = rho * upstream
    among = alpha
    offset = alpha
    cut = alpha
    if MULTIPLE:
        among = tl.load(values + rows, mask=there, other=0.0)
        if REDUCTION == "none":
            among = among * upstream
    if not BOUNDED:
        offset = tl.load(values + 3 * rows, mask=there, other=0.0)
    if THRESHOLD == 1:
        cut = tl.full([index.shape[0]], threshold, tl.float32)
    if THRESHOLD == 2:
        cut = tl.load(threshold + index * threshold_stride, mask=there, other=0.0).to(tl.float32)
    return alpha, among, rho, offset, cut


@triton.jit
def gradient(
    own, other, sharpness, own_count, other_count, shift, own_groups, other_groups, threshold, threshold_stride,
    own_clusters, other_clusters, weight, share, grad_loss, grad_stride, statistics,
    own_values, other_values, out, block,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ON_DEVICE: tl.constexpr, NORMALIZE: tl.constexpr, UNIT: tl.constexpr, BOUNDED: tl.constexpr, SELF: tl.constexpr,
    POSITIVES: tl.constexpr, MULTIPLE: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    TREATMENT: tl.constexpr, REDUCTION: tl.constexpr, SIDES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M own rows, over all other rows; SIDES as in ``triton_backward.backward_kernel``."""
    index = block * BLOCK_M + tl.arange(0, BLOCK_M)
    there = index < own_count
    k = sharpness_of(sharpness, ON_DEVICE)
    rows = other_count if SIDES == "other" else own_count  # of the anchors
    columns = own_count if SIDES == "other" else other_count
    own_norm = 0.0
    if NORMALIZE or THRESHOLD != 0:
        own_norm = tl.load(own_values + 5 * own_count + index, mask=there, other=0.0)[:, None]
    x = 0.0
    if BLOCK_K == BLOCK_D:
        x = load_rows(own, index, own_count, D, D, 0, BLOCK_D)
        if UNIT:
            x = x * own_norm
    own_mark = marks(index, own_count, rows, columns, shift, own_groups, POSITIVES, SIDES != "other")[:, None]
    own_cluster = 0
    if own_clusters is not None:
        own_cluster = tl.load(own_clusters + index, mask=there, other=-1)[:, None]
    if SIDES != "other":
        own_side = load_anchors(
            own_values, grad_loss, grad_stride, threshold, index, own_count, threshold_stride, MULTIPLE, BOUNDED,
            THRESHOLD, REDUCTION,
        )  # fmt: skip
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    for start in range(0, other_count, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = column < other_count
        y = load_rows(other, column, other_count, D, D, 0, BLOCK_D)
        other_norm = 0.0
        if NORMALIZE or THRESHOLD != 0:
            other_norm = tl.load(other_values + 5 * other_count + column, mask=inside, other=0.0)
        if UNIT:
            y = y * other_norm[:, None]
        dot = dots(
            x, y, own, index, own_count, D, own_norm, other, column, other_count, D, other_norm, D, BLOCK_D, BLOCK_K,
            UNIT, PRECISION,
        )  # fmt: skip
        cosine = dot
        if (NORMALIZE or THRESHOLD != 0) and not UNIT:
            cosine = dot * (own_norm * other_norm[None, :])
            if NORMALIZE:
                dot = cosine
        mark = marks(column, other_count, rows, columns, shift, other_groups, POSITIVES, SIDES == "other")[None, :]
        positive = own_mark == mark
        if SELF:
            itself = index[:, None] == column[None, :]
            positive = positive & (itself == 0)
        other_cluster = 0
        if own_clusters is not None:
            other_cluster = tl.load(other_clusters + column, mask=inside, other=-1)[None, :]

        of_other = 0
        of_own = 0
        if SIDES != "own":
            side = as_row(
                load_anchors(
                    other_values, grad_loss, grad_stride, threshold, column, other_count, threshold_stride, MULTIPLE,
                    BOUNDED, THRESHOLD, REDUCTION,
                )
            )  # fmt: skip
            false = rejected(
                side, cosine, positive, other_cluster, own_cluster, THRESHOLD, own_clusters is not None, ALL_RULES,
                TREATMENT,
            )  # fmt: skip
            of_other = direction(side, dot, positive, false, k, weight, BOUNDED, MULTIPLE, TREATMENT)
        if SIDES != "other":
            side = as_column(own_side)
            false = rejected(
                side, cosine, positive, own_cluster, other_cluster, THRESHOLD, own_clusters is not None, ALL_RULES,
                TREATMENT,
            )  # fmt: skip
            of_own = direction(side, dot, positive, false, k, weight, BOUNDED, MULTIPLE, TREATMENT)
        grad = gradient_of(of_own, of_other, BOUNDED, SIDES, "plain")
        if SELF:
            grad = tl.where(itself, 0.0, grad)
        if NORMALIZE and not UNIT:
            grad = grad * other_norm[None, :]
        acc = accumulate(grad, y, acc, PRECISION)

    acc = acc * (k * LN2 * upstream_of(grad_loss, statistics, share, REDUCTION))
    store_gradient(acc, own, own_norm, index, own_count, D, out, D, BLOCK_D, NORMALIZE)
