"""The most similar candidates of each anchor, in Triton: the cut of the top-k rule, and the margin's rival."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_rows import dots
from .triton_tiles import anchor_side, anchor_tile

SLACK = tl.constexpr(1e-6)  # more than two kernels' cosines of one pair differ by


@triton.jit
def cut_kernel(
    anchors, candidates, anchor_norms, candidate_norms, rows, columns, anchor_stride, candidate_stride, self_offset,
    self_index, positive_offset, positive_index, groups, candidate_groups, threshold, threshold_stride, length,
    partials, cuts, k,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    K: tl.constexpr, SELF: tl.constexpr, OFFSET: tl.constexpr, THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A cosine that the k most similar negatives of a row exceed and no other does; see ``store_cuts``.

    Of several programs for each row, one sees ``length`` candidates and leaves the best K of them in ``partials``
    [shares, M, K], ascending, for ``cut_merge_kernel``.
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    side = anchor_side(
        anchors, anchor_norms, anchor, rows, anchor_stride, self_index, positive_index, groups, threshold,
        threshold_stride, None, D, BLOCK_D, BLOCK_K, False, THRESHOLD,
    )  # fmt: skip
    best = tl.full([BLOCK_M, K], float("-inf"), tl.float32)
    bar = tl.full([BLOCK_M], float("-inf"), tl.float32)
    first = tl.program_id(1) * length
    for start in range(first, tl.minimum(first + length, columns), BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        _, cosine, _, negative, _ = anchor_tile(
            side, anchors, anchor, rows, anchor_stride, candidates, candidate_norms, candidate, columns,
            candidate_stride, self_offset, self_index, positive_offset, positive_index, groups, candidate_groups, None,
            None, D, BLOCK_D, BLOCK_K, False, False, SELF, OFFSET, 0, False, "none", 1, False, PRECISION,
        )  # fmt: skip
        cosine = tl.where(negative & (anchor < rows)[:, None], cosine, float("-inf"))
        # Once the best are good, few tiles have anything to add.
        if tl.max(tl.max((cosine > bar[:, None]).to(tl.int32), axis=1), axis=0) > 0:
            # The larger halves of a rising and a falling sequence rise and fall: one merge sorts them.
            best = tl.bitonic_merge(tl.maximum(best, tl.topk(cosine, K)))
            bar = tl.min(best, axis=1)
    if tl.num_programs(1) == 1:
        store_cuts(best, anchor, rows, threshold, threshold_stride, cuts, k, K, THRESHOLD, ALL_RULES)
    else:
        row = (tl.program_id(1) * rows + anchor).to(tl.int64)[:, None]
        tl.store(partials + row * K + tl.arange(0, K)[None, :], best, mask=(anchor < rows)[:, None])


@triton.jit
def cut_merge_kernel(
    partials, shares, rows, threshold, threshold_stride, cuts, k, BLOCK_M: tl.constexpr, K: tl.constexpr,
    THRESHOLD: tl.constexpr, ALL_RULES: tl.constexpr,
):  # fmt: skip
    """The cuts of BLOCK_M rows from the best of every share."""
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = (anchor < rows)[:, None]
    place = tl.arange(0, K)[None, :]
    best = tl.load(partials + anchor.to(tl.int64)[:, None] * K + place, mask=there, other=0.0)
    for share in range(1, shares):
        row = (share * rows + anchor).to(tl.int64)[:, None]
        more = tl.load(partials + row * K + (K - 1 - place), mask=there, other=0.0)
        best = tl.bitonic_merge(tl.maximum(best, more))
    store_cuts(best, anchor, rows, threshold, threshold_stride, cuts, k, K, THRESHOLD, ALL_RULES)


@triton.jit
def store_cuts(
    best, anchor, rows, threshold, threshold_stride, cuts, k, K: tl.constexpr, THRESHOLD: tl.constexpr,
    ALL_RULES: tl.constexpr,
):  # fmt: skip
    """The cut of each row from its best K > k cosines, ascending; -inf where there are no more than k.

    It lies halfway between the k-th and the next one, which no rounding of another pass turns around; where these two
    are equal, just below. With a threshold beside it, the larger of both where all rules must hold, else the smaller.
    """
    place = tl.arange(0, K)[None, :]
    last = tl.max(tl.where(place == K - k, best, float("-inf")), axis=1)
    following = tl.max(tl.where(place == K - k - 1, best, float("-inf")), axis=1)
    cut = tl.where(following < last, 0.5 * last + 0.5 * following, last - SLACK)
    if THRESHOLD == 1:
        cut = tl.maximum(cut, threshold) if ALL_RULES else tl.minimum(cut, threshold)
    if THRESHOLD == 2:
        given = tl.load(threshold + anchor.to(tl.int64) * threshold_stride, mask=anchor < rows, other=0.0)
        cut = tl.maximum(cut, given) if ALL_RULES else tl.minimum(cut, given)
    tl.store(cuts + anchor, cut, mask=anchor < rows)


@triton.jit
def hardest_kernel(
    anchors, candidates, candidate_norms, rows, columns, anchor_stride, candidate_stride, positive_index, indices,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each anchor the candidate of largest dot product, or cosine with norms, but for its positive one.

    Of equal ones the first; -1 where no number is largest.
    """
    anchor = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    positive = tl.load(positive_index + anchor, mask=anchor < rows, other=-1)[:, None]
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    place = tl.full([BLOCK_M], -1, tl.int32)
    for start in range(0, columns, BLOCK_N):
        candidate = start + tl.arange(0, BLOCK_N)
        score = dots(
            0.0, 0.0, anchors, anchor, rows, anchor_stride, 0.0, candidates, candidate, columns, candidate_stride, 0.0,
            D, 0, BLOCK_K, False, PRECISION,
        )  # fmt: skip
        if candidate_norms is not None:
            score = score * tl.load(candidate_norms + candidate, mask=candidate < columns, other=0.0)[None, :]
        score = tl.where((candidate < columns)[None, :] & (candidate[None, :] != positive), score, float("-inf"))
        largest, at = tl.max(score, axis=1, return_indices=True)
        place = tl.where(largest > best, start + at, place)
        best = tl.maximum(best, largest)
    tl.store(indices + anchor, place.to(tl.int64), mask=anchor < rows)
