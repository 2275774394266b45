"""Drawn calls of the contrastive family against loops over pairs: losses and all gradients, by reference and native.

The bound is that of contracts.md section 8, with eager's error replaced by what any evaluation of that precision must
expect, since one case says nothing about luck: a cosine is off by a few units of rounding, its logit by that over the
temperature, a loss by that times its slope, a row of a gradient by that times the terms it is the sum of.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

from clead_kernels import _native
from tests.kernels.fuzz_cases import PLAIN, Case, call_of, cases, rows_of
from tests.kernels.loops import Loop

SLACK = 2.0
"""Units of rounding that a cosine may be off."""
TRUTH = 4 * torch.finfo(torch.float64).eps / 2
"""The loops are float64 themselves."""


def rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


class Bound:
    """How far losses and gradients of a case may be off. ``pull``: the gradient of the result by the losses [M]."""

    def __init__(self, case: Case, inputs: tuple[Tensor, ...], loops: list[Loop], pull: Tensor) -> None:
        a, b, temperature, bias = (x.detach() for x in inputs)
        self.case, self.temperature = case, temperature.item()
        self.bias = bias.abs().item() if case.door == "sigmoid_loss" else 0.0
        self.unit = max(rounding(torch.float64 if case.dtype == torch.float64 else torch.float32), TRUTH)
        # What the other side's rows bring into a gradient, and what the way to the raw rows makes of it.
        lengths = [x.norm(dim=1) for x in (a, b)]
        self.reach = [torch.ones_like(x) if case.normalize else x for x in lengths]
        self.out = [torch.where(x < 1e-12, 0.0, 1 / x) if case.normalize else torch.ones_like(x) for x in lengths]
        self.terms = [self.of_loop(at, loop, pull / len(loops)) for at, loop in enumerate(loops)]
        self.losses = sum(losses for losses, *_ in self.terms) / len(loops)

    def of_loop(self, at: int, loop: Loop, pull: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Errors of the losses [M] and of their derivatives by the logits [M, N], the terms of these, the logits."""
        own, other = self.reach[at][:, None], self.reach[1 - at][None, :]
        logits = (own * other if self.case.form["metric"] == "cosine" else (own + other).square()) / self.temperature
        largest = 1 + logits.max(1).values + self.bias
        slope = torch.autograd.grad(loop.rows.sum(), loop.logits, retain_graph=True)[0].abs()
        for i, positives in enumerate(loop.positives):
            if self.case.form != PLAIN and positives:
                summed = self.case.form["positives_reduction"] == "sum"
                slope[i] = (slope[i] + 1) * loop.stress[i] * (len(positives) if summed else 1)
            elif len(positives) > 1:
                slope[i, positives] += 1 / len(positives)
        losses = (SLACK * self.unit * slope.sum(1) + TRUTH) * largest + 8 * self.unit * loop.rows.detach().abs()
        terms, pull, largest = slope * pull.abs()[:, None], pull.abs()[:, None], largest[:, None]
        return losses, (SLACK * largest + 8) * self.unit * terms + TRUTH * largest * pull, terms, logits

    def gradients(self, truths: tuple[Tensor, ...]) -> list[Tensor]:
        """Of every row of anchors and candidates, of temperature and bias, given the true gradients."""
        low, half = rounding(self.case.dtype), self.case.dtype.itemsize == 2
        tiny = torch.finfo(self.case.dtype).smallest_normal * torch.finfo(self.case.dtype).eps
        sides = [8 * low * x.norm(dim=1) + tiny * x.shape[1] for x in truths[:2]]
        temperature, bias = (8 * self.unit * x.abs() for x in truths[2:])
        for at, (_, errors, terms, logits) in enumerate(self.terms):
            # Of halves, the derivatives are rounded before they are multiplied.
            by_pair = (errors + 4 * low * terms if half else errors) / self.temperature
            for side, pairs in ((at, by_pair), (1 - at, by_pair.T)):
                reach = self.reach[1 - side].expand_as(pairs)
                if self.case.form["metric"] == "euclidean":
                    reach = 2 * (reach + self.reach[side][:, None])
                sides[side] = sides[side] + (pairs * reach).sum(1) * self.out[side]
            temperature = temperature + 2 * (by_pair * logits).sum()
            bias = bias + errors.sum()
        return [*sides, temperature, bias]


def reduced(case: Case, rows: Tensor, positives: list[list[int]]) -> Tensor:
    rows = rows * case.weights().double() if case.weighted else rows
    if case.reduction == "none":
        return rows
    counts = {"sum": 1, "mean": case.m, "mean_valid": max(1, sum(bool(x) for x in positives))}
    return rows.sum() / counts[case.reduction]


def check(case: Case, impl: str) -> bool:
    """Whether ``impl`` takes this case; if so, all it gives is compared."""
    call, alone = call_of(case), case.door in ("nt_xent", "sup_con")
    working = torch.float64 if case.dtype == torch.float64 else torch.float32
    scalars = [torch.tensor(x, dtype=working) for x in (case.temperature, case.bias)]
    inputs = tuple(x.requires_grad_() for x in (*rows_of(case), *scalars))
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    loops = call.truth(*exact)
    size = 1.0 if case.normalize else max(x.norm(dim=1).max().item() for x in exact[:2]) ** 2
    gap = 32 * rounding(working) * (size if case.door == "instance_margin" else 1.0)
    assume(all(loop.clearance > gap and not loop.unsettled for loop in loops))
    rows = sum(loop.rows for loop in loops) / len(loops)
    truth = reduced(case, rows, loops[0].positives)
    upstream = (case.upstream * case.numbers(16, *truth.shape)).to(working)
    truths = torch.autograd.grad(truth, exact, upstream.double(), retain_graph=True, materialize_grads=True)
    assume(all(x.abs().max() < torch.finfo(case.dtype).max for x in truths[:2] if case.dtype == torch.float16))
    try:
        ours = call.ours(*(inputs if case.learnable else (*inputs[:2], *(x.item() for x in scalars))), impl)
    except NotImplementedError:
        return False
    (pull,) = torch.autograd.grad(truth, rows, upstream.double(), retain_graph=True)
    bound = Bound(case, (exact[0], exact[0] if alone else exact[1], *exact[2:]), loops, pull)
    (weights,) = torch.autograd.grad(truth.sum(), rows, retain_graph=True)
    allowed = bound.losses * weights.abs()
    assert ours.dtype == working
    within(ours, truth, allowed if truth.ndim else allowed.sum() + 8 * bound.unit * (rows * weights).abs().sum())
    limits = bound.gradients((truths[0], truths[0] if alone else truths[1], *truths[2:]))
    if alone:
        limits[0] = limits[0] + limits[1]
    wanted = [0] + [1] * (not alone) + [2] * case.learnable + [3] * (case.learnable and case.door == "sigmoid_loss")
    grads = torch.autograd.grad(ours, [inputs[at] for at in wanted], upstream, materialize_grads=True)
    for at, grad in zip(wanted, grads, strict=True):
        assert grad.dtype == inputs[at].dtype
        within(grad, truths[at], limits[at])
    return True


def within(ours: Tensor, truth: Tensor, allowed: Tensor) -> None:
    """Numbers, or the lengths of rows, are off by no more than ``allowed``."""
    assert ours.shape == truth.shape
    error = (ours.detach().double() - truth.detach()).abs()
    error = error.norm(dim=1) if error.ndim == 2 else error
    assert (error <= allowed).all(), f"{error} beyond {allowed}"


def options(examples: int, **more: bool) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=checks, **more)


@options(60, derandomize=True)
@given(cases())
def test_some_calls(case: Case) -> None:
    assert check(case, "reference")
    check(case, "native")


@pytest.mark.slow
@options(2000, print_blob=True)
@given(cases())
def test_2000_calls(case: Case) -> None:
    assert check(case, "reference")
    check(case, "native")


@pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")
def test_native_takes_its_part() -> None:
    """Or the tests above would say nothing about it."""
    taken = []

    @options(100, derandomize=True)
    @given(cases())
    def count(case: Case) -> None:
        taken.append(check(case, "native"))

    count()
    assert sum(taken) > len(taken) / 3
