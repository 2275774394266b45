"""The contrastive family in C++ (csrc/cpu/contrastive.cpp): same signatures and meaning as ``reference``.

The compiled extension registers the kernels; here are their schemas, and tensors to write into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._rows import working_dtype
from .form import Form
from .pairs import Pairs

STATISTICS = 16
"""Rows of the statistics (csrc/cpu/contrastive_arguments.h); n and p of the reference are the first."""

_DENOMINATORS = ("all", "own_positive", "negatives")
_ARGUMENTS = (
    "Tensor anchors, Tensor? candidates, float temperature, bool normalize, int self_offset, Tensor? self_index, "
    "int positive_offset, Tensor? positive_index, Tensor? groups, Tensor? candidate_groups, float? threshold, "
    "Tensor? row_threshold, int topk, Tensor? clusters, Tensor? candidate_clusters, bool each_level, bool all_rules, "
    "bool attract, float weight, int denominator, bool inside, float spread, float debias, float hard_negative_beta, "
    "bool euclidean, bool both_ways"
)
_library.define(
    f"contrastive_native_({_ARGUMENTS}, Tensor(a!) loss, Tensor(b!) num_positives, Tensor(c!) statistics) -> ()"
)
_library.define(
    f"contrastive_native_backward_(Tensor grad_loss, Tensor statistics, {_ARGUMENTS}, "
    "Tensor(a!) grad_anchors, Tensor(b!) grad_candidates, Tensor(c!) grad_temperature) -> ()"
)


def forward(
    anchors: Tensor, candidates: Tensor | None, temperature: Tensor | float, normalize: bool, pairs: Pairs, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row, its number of positives and the statistics for ``backward``: see ``reference.forward``."""
    losses, dtype = pairs.losses(anchors.shape[0]), working_dtype(anchors.dtype)
    loss, statistics = anchors.new_empty(losses, dtype=dtype), anchors.new_empty((STATISTICS, losses), dtype=dtype)
    num_positives = anchors.new_empty(losses, dtype=torch.int64)
    # Embeddings that meet their own constant copy: forward is symmetric all the same, and half the work.
    same = candidates is not None and not pairs.both_ways and _same(anchors, candidates)
    others = None if same else candidates
    arguments = _arguments(anchors, others, temperature, normalize, pairs, form)
    torch.ops.clead.contrastive_native_.default(*arguments, loss, num_positives, statistics)
    return loss, num_positives, statistics


def backward(
    grad_loss: Tensor,
    statistics: Tensor,
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: Tensor | float,
    normalize: bool,
    pairs: Pairs,
    form: Form,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. anchors, candidates and temperature (in the working dtype); empty where ``needs`` says no."""
    arguments = _arguments(anchors, candidates, temperature, normalize, pairs, form)
    dtype = working_dtype(anchors.dtype)
    nothing = anchors.new_empty(0, dtype=dtype)
    # Candidates that are the anchors, with rules that are not symmetric, get their part of the gradient separately.
    twice = candidates is None and not _symmetric(pairs, form)
    others = anchors if candidates is None else candidates
    grad_anchors = anchors.new_empty(anchors.shape, dtype=dtype) if needs[0] else nothing
    need_others = needs[0] if twice else needs[1] and candidates is not None
    grad_candidates = others.new_empty(others.shape, dtype=dtype) if need_others else nothing
    grad_temperature = anchors.new_empty((), dtype=dtype) if needs[2] else nothing
    torch.ops.clead.contrastive_native_backward_.default(
        grad_loss.to(dtype), statistics, *arguments, grad_anchors, grad_candidates, grad_temperature
    )
    if twice and needs[0]:
        grad_anchors, grad_candidates = grad_anchors + grad_candidates, nothing
    return grad_anchors.to(anchors.dtype), grad_candidates.to(anchors.dtype), grad_temperature


def _same(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()


def _symmetric(pairs: Pairs, form: Form) -> bool:
    """Whether one pass over the tiles serves pair (i, j) and pair (j, i): as in csrc/cpu/contrastive_call.h."""
    return (
        pairs.self_offset <= 0
        and pairs.positive_offset < 0
        and pairs.positive_index is None
        and pairs.candidate_groups is None
        and pairs.self_index is None
        and pairs.topk == 0
        and form.spread == 0.0
    )


def _arguments(
    anchors: Tensor, candidates: Tensor | None, temperature: Tensor | float, normalize: bool, pairs: Pairs, form: Form
) -> tuple[Any, ...]:
    threshold = pairs.row_threshold
    return (
        anchors.detach(),
        None if candidates is None else candidates.detach(),
        float(temperature),
        normalize,
        pairs.self_offset,
        pairs.self_index,
        pairs.positive_offset,
        pairs.positive_index,
        pairs.groups,
        pairs.candidate_groups,
        pairs.threshold,
        None if threshold is None else threshold.to(anchors.device, working_dtype(anchors.dtype)),
        pairs.topk,
        pairs.clusters,
        pairs.candidate_clusters,
        pairs.each_level,
        pairs.all_rules,
        pairs.treatment == "attract",
        pairs.weight if pairs.treatment == "weight" else 0.0,
        _DENOMINATORS.index(form.denominator),
        form.positives_reduction == "inside",
        form.spread,
        form.debias,
        form.hard_negative_beta,
        form.metric == "euclidean",
        pairs.both_ways,
    )
