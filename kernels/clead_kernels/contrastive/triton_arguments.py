"""Rules and forms in the words of the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .form import Form
from .pairs import Pairs

SHARPEST = 58.0
"""Of unit rows with one offset for all: exp2 of -2 * sharpness, and 2 ** 10 times its inverse, are normal float32."""


def threshold_of(a: Tensor, pairs: Pairs) -> tuple[Tensor | float, int, int]:
    """(threshold, its stride, 0 none | 1 a number | 2 a tensor)."""
    if pairs.row_threshold is not None:
        cut = pairs.row_threshold.to(a.device, torch.float32)
        return cut, cut.stride(0) if cut.ndim else 0, 2
    return (0.0, 0, 0) if pairs.threshold is None else (float(pairs.threshold), 0, 1)


def form_of(form: Form, several: bool) -> str:
    """The word for it in the kernels; with at most one positive in a row, some forms are others."""
    if form.spread:
        return "spread"
    inside = form.positives_reduction == "inside" and several
    if form.denominator == "negatives":
        return "negatives inside" if inside else "negatives"
    if form.denominator == "own_positive" and several:
        return "own inside" if inside else "own"
    return "inside" if inside else "plain"


def treatment_of(pairs: Pairs) -> str:
    """The treatment of false negatives; a weight of 0 eliminates them."""
    return "eliminate" if pairs.treatment == "weight" and pairs.weight == 0.0 else pairs.treatment
