"""The contrastive family on Triton: no tensor of [M, N] exists. Equals ``reference``; see there for the formulas.

Forward: inverse norms, then one pass over all pairs. Backward: one value set per anchor, then one pass per gradient; a
set of rows that meets itself needs one pass, which makes G + G^T from each dot product. Where a side has too few rows
to occupy the device, the other one is shared out (``_shares``), and one more launch puts the shares together. No
atomics, nothing is summed in an order that could change, nothing waits for the device.

The statistics are the reference's n and p, and below them what would cost the backward another pass over all pairs:
the denominator and its offset, the number of positives, the row's part of the temperature's gradient, and what forms
other than the plain one keep (``triton_forms``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._triton_rows import MAX_WIDTH, Config, inverse_norms, on_device, padded_width, precision
from .form import Form
from .pairs import Pairs
from .triton_arguments import SHARPEST, form_of, threshold_of, treatment_of
from .triton_backward import backward_kernel, prepare_kernel
from .triton_configs import SECOND, config
from .triton_division import CLOSE, GATHER, divide, put_together
from .triton_forward import close_kernel, forward_kernel
from .triton_gradient import gather_kernel
from .triton_own import own_close_kernel, own_kernel
from .triton_search import find_cuts
from .triton_spread import spread_close_kernel, spread_kernel

STATISTICS = 13
"""Rows of the statistics."""

_ROWS = 32  # of a program that prepares anchors


def forward(
    anchors: Tensor, candidates: Tensor | None, temperature: Tensor | float, normalize: bool, pairs: Pairs, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row [M], number of positives int64 [M], statistics [13, M]; see ``reference.forward``."""
    a, b = _contiguous(anchors, candidates)
    (rows, width), columns = a.shape, b.shape[0]
    loss = a.new_empty(rows, dtype=torch.float32)
    count = a.new_empty(rows, dtype=torch.int64)
    statistics = a.new_empty((STATISTICS, rows), dtype=torch.float32)
    if rows == 0:
        return loss, count, statistics
    rule = _Rule(a, b, pairs, form, temperature, normalize, statistics[12])
    with on_device(a):
        anchor_norms = candidate_norms = None
        if rule.cosines:
            anchor_norms = inverse_norms(a)
            candidate_norms = anchor_norms if b is a else inverse_norms(b)
            if pairs.topk:
                positives = (pairs.positive_offset, rule.positive_index, rule.groups, rule.candidate_groups)
                find_cuts(a, b, anchor_norms, candidate_norms, pairs, rule.self_index, positives, statistics[12])
        arguments = (
            a, b, anchor_norms, candidate_norms, rule.sharpness, rows, columns, a.stride(0), b.stride(0),
            pairs.self_offset, rule.self_index, pairs.positive_offset, rule.positive_index, rule.groups,
            rule.candidate_groups, rule.threshold, rule.threshold_stride, rule.clusters, rule.candidate_clusters,
            pairs.weight,
        )  # fmt: skip
        flags = {"SLOPE": rule.on_device, **rule.flags}
        shape = config("forward", rule.masks, width, a.dtype, rows, columns, a.device)
        programs = divide(shape, rows, columns, 8, a)
        forward_kernel[programs.grid](
            *arguments, programs.length, programs.partials, loss, count, statistics, **_launch(shape, width), **flags
        )
        put_together(close_kernel, CLOSE, programs, rows, rule.sharpness, loss, count, statistics, **flags)
        if rule.form in ("own", "own inside", "spread"):
            shape = SECOND[max(padded_width(width), 64), str(a.dtype).removeprefix("torch.")]
            programs = divide(shape, rows, columns, 9, a)
            spread = (form.spread,) if rule.form == "spread" else ()
            kernel, closing = (spread_kernel, spread_close_kernel) if spread else (own_kernel, own_close_kernel)
            kernel[programs.grid](
                *arguments, *spread, programs.length, programs.partials, loss, statistics, **_launch(shape, width),
                **flags,
            )  # fmt: skip
            put_together(closing, CLOSE, programs, rows, rule.sharpness, *spread, loss, statistics, **flags)
    return loss, count, statistics


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
    """Gradients w.r.t. anchors, candidates and temperature; empty where ``needs`` says no."""
    a, b = _contiguous(anchors, candidates)
    grad_anchors, grad_candidates, grad_temperature = (statistics.new_empty(0) for _ in range(3))
    need_candidates = needs[1] and candidates is not None
    if needs[0]:
        grad_anchors = torch.empty_like(a)
    if need_candidates:
        grad_candidates = torch.empty_like(b)
    if needs[2]:
        scale = torch.as_tensor(temperature, device=a.device, dtype=torch.float32)
        grad_temperature = -(grad_loss * statistics[5]).sum() / scale.square()
    if not (needs[0] or need_candidates):
        return grad_anchors, grad_candidates, grad_temperature
    if a.shape[0] == 0:
        return grad_anchors, grad_candidates.zero_(), grad_temperature
    rule = _Rule(a, b, pairs, form, temperature, normalize, statistics[12])
    with on_device(a):
        prepared = _prepare(a, b, grad_loss, statistics, rule)
        if candidates is not None:
            if needs[0]:
                _gradient("own", grad_anchors, a, b, pairs, rule, statistics, *prepared)
            if need_candidates:
                _gradient("other", grad_candidates, a, b, pairs, rule, statistics, *prepared)
        elif rule.symmetric:
            _gradient("both", grad_anchors, a, a, pairs, rule, statistics, *prepared)
        else:
            _gradient("own", grad_anchors, a, a, pairs, rule, statistics, *prepared)
            as_candidates = torch.empty_like(a)
            _gradient("other", as_candidates, a, a, pairs, rule, statistics, *prepared)
            grad_anchors += as_candidates
    return grad_anchors, grad_candidates, grad_temperature


class _Rule:
    """One call's rules as the kernels take them: tensors on the device, or None, and compile-time flags."""

    def __init__(
        self, a: Tensor, b: Tensor, pairs: Pairs, form: Form, temperature: Tensor | float, normalize: bool, cuts: Tensor
    ) -> None:
        if a.shape[1] > MAX_WIDTH:
            raise NotImplementedError(f"the Triton kernels take rows of up to {MAX_WIDTH} values, got {a.shape[1]}")
        if isinstance(temperature, Tensor) and a.is_cuda and not temperature.is_cuda:
            self.sharpness: Tensor | float = temperature.detach().to(a.device, torch.float32)
        else:
            self.sharpness = temperature if isinstance(temperature, Tensor) else math.log2(math.e) / temperature
        self.on_device = isinstance(self.sharpness, Tensor)
        self.self_index, self.positive_index = _vector(pairs.self_index), _vector(pairs.positive_index)
        self.groups = _vector(pairs.groups)
        self.candidate_groups = self.groups if pairs.candidate_groups is None else _vector(pairs.candidate_groups)
        self.clusters, self.candidate_clusters = _vector(pairs.clusters), _vector(pairs.candidate_clusters)
        self.threshold, self.threshold_stride, kind = (cuts, 1, 2) if pairs.topk else threshold_of(a, pairs)
        self.cosines = normalize or kind != 0
        # T = G + G^T needs positives that are positives of each other; front doors without candidates give groups.
        self.symmetric = (
            b is a
            and self.groups is not None
            and self.candidate_groups is self.groups
            and self.positive_index is None
            and self.self_index is None
            and pairs.positive_offset < 0
            and pairs.self_offset <= 0
            and (self.clusters is None or _same(self.clusters, self.candidate_clusters))
        )
        offset, index = pairs.positive_offset >= 0, self.positive_index is not None
        treatment = treatment_of(pairs) if kind != 0 or self.clusters is not None else "none"
        several = self.groups is not None or (offset and index) or treatment == "attract"
        self.form = form_of(form, several)
        self.bounded = normalize and not self.on_device and self.sharpness <= SHARPEST and self.form != "spread"
        self.masks = "plain" if self.bounded and treatment == "none" else "rules"
        self.masks = self.masks if self.form == "plain" else "forms"
        self.flags: dict[str, Any] = {
            "D": a.shape[1],
            "BLOCK_D": padded_width(a.shape[1]),
            "ON_DEVICE": self.on_device,
            "NORMALIZE": normalize,
            "UNIT": normalize and a.dtype == torch.float32,
            "BOUNDED": self.bounded,
            "SELF": pairs.self_offset >= 0,
            "OFFSET": offset,
            "MULTIPLE": several,
            "THRESHOLD": kind,
            "ALL_RULES": pairs.all_rules,
            "TREATMENT": treatment,
            "LEVELS": 1 if self.clusters is None or self.clusters.ndim == 1 else self.clusters.shape[0],
            "EACH": pairs.each_level,
            "FORM": self.form,
            "PRECISION": precision(a.dtype),
        }


def _prepare(
    a: Tensor, b: Tensor, grad_loss: Tensor, statistics: Tensor, rule: _Rule
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The anchors' coefficients [3, M] and both sides' inverse norms."""
    rows = a.shape[0]
    coefficients = statistics.new_empty((3 if rule.form == "plain" else 5, rows))
    anchor_norms = statistics.new_empty(rows) if rule.cosines else None
    prepare_kernel[(-(-rows // _ROWS),)](
        a, anchor_norms, statistics, grad_loss, coefficients, rows, a.stride(0), grad_loss.stride(0),
        D=rule.flags["D"], BLOCK_D=rule.flags["BLOCK_D"], BLOCK_M=_ROWS, FORM=rule.form,
    )  # fmt: skip
    candidate_norms = anchor_norms if b is a or not rule.cosines else inverse_norms(b)
    return coefficients, anchor_norms, candidate_norms


def _gradient(
    sides: str,
    out: Tensor,
    a: Tensor,
    b: Tensor,
    pairs: Pairs,
    rule: _Rule,
    statistics: Tensor,
    coefficients: Tensor,
    anchor_norms: Tensor | None,
    candidate_norms: Tensor | None,
) -> None:
    """Fill ``out`` with the gradient of the anchors ("own", "both") or of the candidates ("other")."""
    flip = -1 if sides == "other" else 1
    own, other = (a, b)[::flip]
    norms = (anchor_norms, candidate_norms)[::flip]
    groups = (rule.groups, rule.candidate_groups)[::flip]
    clusters = (rule.clusters, rule.candidate_clusters)[::flip]
    rows = out.shape[0]
    if rows == 0:
        return
    width = out.shape[1]
    shape = config("backward", rule.masks, width, out.dtype, rows, other.shape[0], out.device)
    programs = divide(shape, rows, other.shape[0], width, out)
    backward_kernel[programs.grid](
        own, other, *norms, rule.sharpness, rows, other.shape[0], own.stride(0), other.stride(0), pairs.self_offset,
        rule.self_index, pairs.positive_offset, rule.positive_index, *groups, rule.threshold, rule.threshold_stride,
        *clusters, pairs.weight, statistics, coefficients, programs.length, programs.partials, out,
        **_launch(shape, width), SIDES=sides, **rule.flags,
    )  # fmt: skip
    put_together(
        gather_kernel,
        GATHER[max(padded_width(width), 64)],
        programs,
        rows,
        own,
        norms[0],
        own.stride(0),
        out,
        **rule.flags,
    )


def _launch(shape: Config, width: int) -> dict[str, int]:
    return {
        "BLOCK_M": shape.block_m,
        "BLOCK_N": shape.block_n,
        "BLOCK_K": min(shape.block_k, padded_width(width)),
        "num_warps": shape.warps,
        "num_stages": shape.stages,
    }


def _contiguous(anchors: Tensor, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
    a = anchors.contiguous()
    return a, a if candidates is None else candidates.contiguous()


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _same(x: Tensor | None, y: Tensor | None) -> bool:
    return x is y or (x is not None and y is not None and x.data_ptr() == y.data_ptr())
