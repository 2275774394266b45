"""What all front doors of the contrastive family do alike: choose an implementation, call the op, reduce its rows."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import dispatch
from . import ops
from .form import Form
from .pairs import Pairs

Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = ("mean", "sum", "none")


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
    reductions = (*_REDUCTIONS, "mean_valid") if op == "sup_con" else _REDUCTIONS
    arguments.check_choice("reduction", options.reduction, reductions)
    arguments.check_flag("normalize", options.normalize)
    arguments.check_flag("grad_candidates", options.grad_candidates)
    weights, sum_positives = options.weights, form.positives_reduction == "sum"
    if weights is not None:
        weights = arguments.check_weights("weights", weights, anchors.shape[0], anchors.device)
    if sum_positives:
        form = form._replace(positives_reduction="mean")
    features = {**pairs.features(anchors.shape[1]), **form.features()}
    chosen = dispatch.resolve(op, options.impl, device=anchors.device, dtype=anchors.dtype, **features)
    scale = arguments.split_temperature(options.temperature, anchors.device)
    if not options.grad_candidates:
        candidates = (anchors if candidates is None else candidates).detach()
    rows, num_positives, _ = ops.forward_op(anchors, candidates, *scale, options.normalize, chosen, *pairs, *form)
    if sum_positives:
        rows = rows * num_positives
    if weights is not None:
        rows = rows * weights.to(rows.dtype)
    return reduce(rows, num_positives, options.reduction)


def reduce(rows: Tensor, num_positives: Tensor, reduction: str) -> Tensor:
    """``rows`` [M] by name; ``"mean_valid"`` is the mean over rows with a positive."""
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if reduction == "mean":
        return rows.sum() / max(rows.shape[0], 1)
    return rows.sum() / (num_positives > 0).sum().clamp_min(1)


def check_index(name: str, index: Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """A candidate for every row, -1 = none: int64 [rows]."""
    index = arguments.check_integers(name, index, [rows], device)
    if arguments.values_readable(index):
        wrong = index[(index < -1) | (index >= columns)]
        if wrong.numel():
            raise ValueError(f"{name} must be candidate indices in [-1, {columns}), found {wrong[0].item()}")
    return index
