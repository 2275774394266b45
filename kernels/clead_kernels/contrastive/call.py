"""What all front doors of the contrastive family do alike: choose an implementation, call the op, reduce its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import _trial, dispatch
from . import ops, small
from .form import Form
from .pairs import Pairs
from .triton_arguments import SHARPEST

Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = ("mean", "sum", "none")
_OPPOSITES = Pairs(positive_offset=0)


class Options(NamedTuple):
    """The options of a front door that change neither pairs nor form; see ``api``."""

    temperature: float | Tensor
    normalize: bool
    weights: Tensor | None
    grad_candidates: bool
    reduction: str
    impl: str


def loss(op: str, anchors: Tensor, candidates: Tensor | None, pairs: Pairs, form: Form, options: Options) -> Tensor:
    """The reduced loss of a call whose pairs and form are checked."""
    return _call(_loss, op, anchors, candidates, pairs, form, options)


def mirrored_loss(op: str, a: Tensor, b: Tensor, pairs: Pairs, form: Form, options: Options) -> Tensor:
    """The mean of the losses of ``a`` by ``b`` and of ``b``, of as many rows, by ``a``; ``pairs`` are those of a."""
    return _call(_mirrored_loss, op, a, b, pairs, form, options)


def _call(
    compute: Callable[..., Tensor],
    op: str,
    anchors: Tensor,
    candidates: Tensor | None,
    pairs: Pairs,
    form: Form,
    options: Options,
) -> Tensor:
    reductions = (*_REDUCTIONS, "mean_valid") if op == "sup_con" else _REDUCTIONS
    arguments.check_choice("reduction", options.reduction, reductions)
    arguments.check_flag("normalize", options.normalize)
    arguments.check_flag("grad_candidates", options.grad_candidates)
    if options.weights is not None:
        weights = arguments.check_weights("weights", options.weights, anchors.shape[0], anchors.device)
        options = options._replace(weights=weights)
    asked = form._replace(positives_reduction="mean") if form.positives_reduction == "sum" else form
    features = {**pairs.features(anchors.shape[1]), **asked.features()}
    row = dispatch.find(op, options.impl, device=anchors.device, dtype=anchors.dtype, **features)
    temperature, number = arguments.split_temperature(options.temperature, anchors.device)
    chosen = row.impl
    if row.on_trial and options.impl == "auto":
        tensors = anchors, candidates, temperature
        chosen = _tried(row, tuple(features.values()), compute, *tensors, number, pairs, form, options)
    return compute(chosen, (temperature, number), anchors, candidates, pairs, form, options)


def _tried(
    row: dispatch.Support,
    features: tuple[str, ...],
    compute: Callable[..., Tensor],
    anchors: Tensor,
    candidates: Tensor | None,
    temperature: Tensor | None,
    number: float,
    pairs: Pairs,
    form: Form,
    options: Options,
) -> str:
    """What runs a call that ``row``, which is on trial, would run."""

    def run(impl: str, anchors: Tensor, candidates: Tensor | None, temperature: Tensor | None) -> Tensor:
        return compute(impl, (temperature, number), anchors, candidates, pairs, form, options)

    rows, columns = anchors.shape[0], (anchors if candidates is None else candidates).shape[0]
    sizes = _trial.size(rows), _trial.size(columns), _trial.width(anchors.shape[1])
    near = temperature is None or temperature.device == anchors.device
    # Branches, for what a compiler may not know the value of.
    sharp = "sharp" if temperature is None and math.log2(math.e) > SHARPEST * number else "blunt"
    views = 0 if pairs.images <= 0 else 2 if rows == 2 * pairs.images else 3 if rows == 3 * pairs.images else 4
    chosen = options.normalize, options.reduction, options.grad_candidates, options.weights is None
    return _trial.choose(
        row.op,
        row.impl,
        (*features, *pairs.given(), form.positives_reduction, near, sharp, views, *chosen, *sizes),
        run,
        anchors,
        candidates,
        temperature,
        accuracy=_trial.DECISIONS if pairs.compares else _trial.SUMS,
        large=_trial.large(rows, columns),
    )


def _mirrored_loss(
    chosen: str,
    scale: tuple[Tensor | None, float],
    a: Tensor,
    b: Tensor,
    pairs: Pairs,
    form: Form,
    options: Options,
) -> Tensor:
    if (
        chosen == "triton"
        and options.reduction != "none"
        and options.grad_candidates
        and small.serves(a, b, scale[0], pairs, form)
    ):
        return small.loss(a, b, *scale, options.normalize, options.reduction, False, options.weights, True, pairs)
    if chosen == "native" and options.grad_candidates and not _holds_tensors(pairs) and pairs == _OPPOSITES:
        return _loss(chosen, scale, a, b, pairs._replace(both_ways=True), form, options)
    back = pairs._replace(clusters=pairs.candidate_clusters, candidate_clusters=pairs.clusters)
    there = _loss(chosen, scale, a, b, pairs, form, options)
    return (there + _loss(chosen, scale, b, a, back, form, options)) / 2


def _loss(
    chosen: str,
    scale: tuple[Tensor | None, float],
    anchors: Tensor,
    candidates: Tensor | None,
    pairs: Pairs,
    form: Form,
    options: Options,
) -> Tensor:
    sum_positives, weights = form.positives_reduction == "sum", options.weights
    if sum_positives:
        form = form._replace(positives_reduction="mean")
    if not options.grad_candidates:
        candidates = (anchors if candidates is None else candidates).detach()
    if chosen == "triton" and small.serves(anchors, candidates, scale[0], pairs, form):
        return small.loss(
            anchors, candidates, *scale, options.normalize, options.reduction, sum_positives, weights, False, pairs
        )
    pairs = pairs.spelled_out(anchors.shape[0], anchors.device)
    rows, num_positives, _ = ops.forward_op(anchors, candidates, *scale, options.normalize, chosen, *pairs, *form)
    if sum_positives:
        rows = rows * num_positives
    if pairs.both_ways:
        rows = rows.view(2, anchors.shape[0]).mean(0)
    if weights is not None:
        rows = rows * weights.to(rows.dtype)
    return reduce(rows, num_positives, options.reduction)


def _holds_tensors(pairs: Pairs) -> bool:
    return any(isinstance(value, Tensor) for value in pairs)


def reduce(rows: Tensor, num_positives: Tensor, reduction: str) -> Tensor:
    """``rows`` [M] by name; ``"mean_valid"`` is the mean over rows with a positive."""
    if reduction == "none":
        return rows
    if reduction == "sum" or not rows.shape[0]:
        return rows.sum()
    if reduction == "mean":
        return rows.mean()
    return rows.sum() / (num_positives > 0).sum().clamp_min(1)


def check_index(name: str, index: Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """A candidate for every row, -1 = none: int64 [rows]."""
    index = arguments.check_integers(name, index, [rows], device)
    if arguments.values_readable(index):
        wrong = index[(index < -1) | (index >= columns)]
        if wrong.numel():
            raise ValueError(f"{name} must be candidate indices in [-1, {columns}), found {wrong[0].item()}")
    return index
