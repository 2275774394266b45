"""Searches in the contrastive family on Triton: the cuts of the top-k rule, and the margin's most similar candidate."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._shares import occupies, processors
from .._triton_rows import inverse_norms, on_device, padded_width, precision
from .pairs import Pairs
from .triton_arguments import threshold_of
from .triton_configs import HARDEST, MAX_TOPK, SEARCH, SEARCH_MANY
from .triton_division import MERGE, divide, put_together
from .triton_search_kernels import cut_kernel, cut_merge_kernel, hardest_kernel


def find_cuts(
    a: Tensor,
    b: Tensor,
    a_norms: Tensor,
    b_norms: Tensor,
    pairs: Pairs,
    self_index: Tensor | None,
    positives: tuple[Any, ...],
    cuts: Tensor,
) -> None:
    """Fills ``cuts`` [M] with what a negative's cosine must exceed for the rules of ``topk`` and ``threshold``.

    ``positives``: what the kernel takes from ``positive_offset`` to ``candidate_groups``.
    """
    if pairs.topk > MAX_TOPK:
        raise NotImplementedError(f"the Triton kernels find up to {MAX_TOPK} most similar rows, got topk={pairs.topk}")
    (rows, width), short = a.shape, str(a.dtype).removeprefix("torch.")
    held = next(count for count, dtype in SEARCH if dtype == short and count > pairs.topk)
    many = SEARCH_MANY.get((held, short))
    large = many and occupies(rows, b.shape[0], many.block_m, many.block_n, processors(a.device))
    shape = many if many and large else SEARCH[held, short]
    threshold, stride, kind = threshold_of(a, pairs)
    programs = divide(shape, rows, b.shape[0], held, a)
    cut_kernel[programs.grid](
        a, b, a_norms, b_norms, rows, b.shape[0], a.stride(0), b.stride(0), pairs.self_offset, self_index, *positives,
        threshold, stride, programs.length, programs.partials, cuts, pairs.topk,
        D=width, BLOCK_D=padded_width(width), BLOCK_M=shape.block_m, BLOCK_N=shape.block_n,
        BLOCK_K=min(shape.block_k, padded_width(width)), K=held, SELF=pairs.self_offset >= 0,
        OFFSET=pairs.positive_offset >= 0, THRESHOLD=kind, ALL_RULES=pairs.all_rules, PRECISION=precision(a.dtype),
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    put_together(
        cut_merge_kernel, MERGE, programs, rows, threshold, stride, cuts, pairs.topk, K=held, THRESHOLD=kind,
        ALL_RULES=pairs.all_rules,
    )  # fmt: skip


def find_hardest(anchors: Tensor, candidates: Tensor, normalize: bool, positives: Tensor, hardest: Tensor) -> None:
    """Fills ``hardest``, int64 [M]: see ``hardest_kernel``."""
    a, b = anchors.contiguous(), candidates.contiguous()
    rows, width = a.shape
    if rows == 0:
        return
    shape = HARDEST[str(a.dtype).removeprefix("torch.")]
    with on_device(a):
        hardest_kernel[(-(-rows // shape.block_m),)](
            a, b, inverse_norms(b) if normalize else None, rows, b.shape[0], a.stride(0), b.stride(0),
            positives.contiguous(), hardest, D=width, BLOCK_M=shape.block_m, BLOCK_N=shape.block_n,
            BLOCK_K=min(shape.block_k, padded_width(width)), PRECISION=precision(a.dtype), num_warps=shape.warps,
            num_stages=shape.stages,
        )  # fmt: skip
