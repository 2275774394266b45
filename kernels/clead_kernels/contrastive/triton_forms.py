"""Forms of the loss beyond the plain one in Triton: what a row keeps between the passes, and its gradient.

``reference_forms`` has the formulas. The kernels call a form by one word: "inside" (the mean over positives inside the
logarithm), "negatives" and "negatives inside" (no positive in the denominator), "own" and "own inside" (each positive
in a denominator of its own), "spread". The last three need a second pass over all pairs.

Rows of the statistics [13, M] of these forms; e_ij is taken against the offset of row 2, but where j is a positive of
the first three forms against that of row 8. Gradients are meant per unit of the row's upstream gradient.

     0  n                                             7  what positives lose in any case
     1  p                                             8  offset of positives; spread: 1 / denominator
     2  offset                                        9  own: log2 of N, less a shift; spread: weight / denominator
     3  gradient by e of a negative                  10  own inside: 2^shift; spread: gradient of the top
     4  number of positives                          11  spread: which column is the top, int32; -1 none
     5  slope, see the forward kernel                12  the cut of the top-k rule
     6  gradient by e of a positive

Between the two passes rows 3, 6, 7, 9 and 10 hold the sum of negatives and of positives, the mean positive dot, and the
mean dots of negatives and of positives under e, less that. The top of "spread" is a negative with more than half of the
denominator: 1 - p of it comes from the sum of the others, and its own gradient, in row 10, is ready.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_pairs import LN2, LOG2E


@triton.jit
def store_sums(
    statistics, anchor, rows, negative_offset, negative_sum, positive_offset, positive_sum, mean, of_negatives,
    of_positives,
):  # fmt: skip
    """For the second pass."""
    there = anchor < rows
    tl.store(statistics + 2 * rows + anchor, negative_offset, mask=there)
    tl.store(statistics + 3 * rows + anchor, negative_sum, mask=there)
    tl.store(statistics + 6 * rows + anchor, positive_sum, mask=there)
    tl.store(statistics + 7 * rows + anchor, mean, mask=there)
    tl.store(statistics + 8 * rows + anchor, positive_offset, mask=there)
    tl.store(statistics + 9 * rows + anchor, of_negatives, mask=there)
    tl.store(statistics + 10 * rows + anchor, of_positives, mask=there)


@triton.jit
def load_sums(statistics, anchor, rows):
    """What ``store_sums`` stored."""
    there = anchor < rows
    return (
        tl.load(statistics + 2 * rows + anchor, mask=there, other=0.0),
        tl.load(statistics + 3 * rows + anchor, mask=there, other=0.0),
        tl.load(statistics + 8 * rows + anchor, mask=there, other=0.0),
        tl.load(statistics + 6 * rows + anchor, mask=there, other=1.0),
        tl.load(statistics + 7 * rows + anchor, mask=there, other=0.0),
        tl.load(statistics + 9 * rows + anchor, mask=there, other=0.0),
        tl.load(statistics + 10 * rows + anchor, mask=there, other=0.0),
    )


@triton.jit
def store_row(
    loss, statistics, anchor, rows, valid, of_row, alpha, among, rho, slope, negative_offset, positive_offset,
    SLOPE: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of a row, 0 where it is not valid."""
    there = anchor < rows
    tl.store(loss + anchor, tl.where(valid, of_row, 0.0), mask=there)
    tl.store(statistics + 2 * rows + anchor, negative_offset, mask=there)
    tl.store(statistics + 3 * rows + anchor, tl.where(valid, alpha, 0.0), mask=there)
    tl.store(statistics + 6 * rows + anchor, tl.where(valid, among, 0.0), mask=there)
    tl.store(statistics + 7 * rows + anchor, tl.where(valid, rho, 0.0), mask=there)
    tl.store(statistics + 8 * rows + anchor, positive_offset, mask=there)
    if SLOPE:
        tl.store(statistics + 5 * rows + anchor, tl.where(valid, slope, 0.0), mask=there)


@triton.jit
def finish(
    loss, statistics, anchor, rows, n, p, number, share, negative_offset, negative_sum, positive_offset, positive_sum,
    of_negatives, of_positives, SLOPE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The forms that need one pass. ``share`` is 1 / denominator against the offset of the negatives."""
    several = number > 1.0
    valid = number > 0.0
    log_number = tl.log2(tl.maximum(number, 1.0))
    if FORM == "inside":
        alpha = share
        of_row = softplus2(n - p) + log_number
    else:
        valid = valid & (negative_sum != 0.0)
        alpha = 1.0 / tl.where(negative_sum != 0.0, negative_sum, 1.0)
        of_row = n
        if FORM == "negatives inside":
            of_row = n - p + log_number
    mass = alpha * negative_sum
    if FORM == "negatives":
        among = mass * 0.0
        rho = mass / tl.maximum(number, 1.0)
    else:
        # A single positive gets minus the mass as it is, whatever e of it.
        among = tl.where(several, -mass / positive_sum, 0.0)
        rho = tl.where(several, 0.0, mass)
    slope = mass * of_negatives + among * positive_sum * of_positives
    store_row(
        loss, statistics, anchor, rows, valid, of_row * LN2, alpha, among, rho, slope, negative_offset,
        positive_offset, SLOPE,
    )  # fmt: skip


@triton.jit
def scale_form(coefficients, statistics, index, rows, g, FORM: tl.constexpr):
    """``coefficients`` [5, M]: alpha, among, rho and what "spread" has beside them, times the upstream gradient."""
    there = index < rows
    tl.store(coefficients + index, g * tl.load(statistics + 3 * rows + index, mask=there), mask=there)
    tl.store(coefficients + rows + index, g * tl.load(statistics + 6 * rows + index, mask=there), mask=there)
    tl.store(coefficients + 2 * rows + index, g * tl.load(statistics + 7 * rows + index, mask=there), mask=there)
    if FORM == "spread":
        tl.store(coefficients + 3 * rows + index, g * tl.load(statistics + 9 * rows + index, mask=there), mask=there)
        tl.store(coefficients + 4 * rows + index, g * tl.load(statistics + 10 * rows + index, mask=there), mask=there)


@triton.jit
def load_form(coefficients, statistics, index, rows, FORM: tl.constexpr):
    """What ``form_gradient`` needs of anchors; ``index`` is a column or a row, and so is all that comes."""
    there = index < rows
    alpha = tl.load(coefficients + index, mask=there, other=0.0)
    among = tl.load(coefficients + rows + index, mask=there, other=0.0)
    rho = tl.load(coefficients + 2 * rows + index, mask=there, other=0.0)
    offset = tl.load(statistics + 2 * rows + index, mask=there, other=0.0)
    positive_offset = tl.load(statistics + 8 * rows + index, mask=there, other=0.0)
    first = alpha
    second = alpha
    top = 0
    if FORM == "own" or FORM == "own inside":
        first = tl.load(statistics + 9 * rows + index, mask=there, other=0.0)
        second = tl.load(statistics + 10 * rows + index, mask=there, other=0.0)
    if FORM == "spread":
        first = tl.load(coefficients + 3 * rows + index, mask=there, other=0.0)
        second = tl.load(coefficients + 4 * rows + index, mask=there, other=0.0)
        top = tl.load(statistics + 11 * rows + index, mask=there, other=0.0).to(tl.int32, bitcast=True)
    return alpha, among, rho, offset, positive_offset, first, second, top


@triton.jit
def form_gradient(
    row, dot, positive, false, candidate, k, weight, BOUNDED: tl.constexpr, TREATMENT: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """d loss_i / d s_ij of a tile, with ``row`` from ``load_form`` and i along the side it has."""
    alpha, among, rho, offset, positive_offset, first, second, top = row
    if TREATMENT == "attract":
        positive = positive | false
    if BOUNDED:
        exponent = k * (dot - 1.0)
    elif FORM == "own" or FORM == "own inside" or FORM == "spread":
        exponent = k * (dot - offset)
    else:
        exponent = k * (dot - tl.where(positive, positive_offset, offset))
    if FORM == "own" or FORM == "own inside":
        exponent -= tl.where(positive, first, 0.0)
    e = tl.exp2(tl.where(exponent > 126.0, 126.0, exponent))  # tl.minimum would lose a NaN
    kept = e
    if TREATMENT == "eliminate":
        kept = tl.where(false, 0.0, e)
    if TREATMENT == "weight":
        kept = tl.where(false, e * weight, e)
    of_negative = kept * alpha
    if FORM == "own" or FORM == "own inside":
        outside = 1.0 / (1.0 + (e * second if FORM == "own inside" else e))
        of_positive = -rho * (e * outside * outside if FORM == "own inside" else outside)
    else:
        of_positive = e * among - rho
    if FORM == "spread":
        share = kept * positive_offset
        of_negative += first * kept * share / (1.0 - share)
        of_negative = tl.where(candidate == top, second, of_negative)
    return tl.where(positive, of_positive, of_negative)


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
    return tl.maximum(x, 0.0) + LOG2E * log1p_of(tl.exp2(-tl.abs(x)))


@triton.jit
def log1p_of(u):
    """log(1 + u) for 0 <= u <= 1."""
    z = u / (2.0 + u)  # log(1 + u) = 2 atanh(z), z <= 1/3
    q = z * z
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return 2.0 * z * series
