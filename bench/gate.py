"""The correctness gate: no number is printed for an implementation that does not compute the case, here and now.

The bar for our implementations, against float64 from the inputs as rounded: the relative error of the per-row values
(RMS) and of each gradient (Frobenius) is at most max(1.5 x that of eager in the same dtype, 8 u), and no element is
worse than max(2 x eager's worst, 16 u) of the largest, u the unit round-off of the output's dtype. Rivals must compute
the same thing, at ten times that bar; eager itself, which is the yardstick, to sqrt(u).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import truth
from .cases import Case, Inputs, Loss, Perturb, Similarity
from .contenders import Contender, contenders
from .work import Work, prepare

RIVAL_SLACK = 10.0
MANY = 32
"""Matrices of a contender that is judged on one seed."""


@dataclass(frozen=True)
class Check:
    """One measured number that must not exceed what is allowed; NaN never passes."""

    name: str
    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.found <= self.allowed


@dataclass(frozen=True)
class Verdict:
    """What the gate found: ``reason`` is None if all checks passed."""

    checks: list[Check]

    @property
    def reason(self) -> str | None:
        failed = [check for check in self.checks if not check.passed]
        return f"wrong: {failed[0].name} {failed[0].found:.2e} > {failed[0].allowed:.2e}" if failed else None

    def error(self, name: str) -> float | None:
        """The largest number found for what starts with ``name``."""
        return max((check.found for check in self.checks if check.name.startswith(name)), default=None)


@dataclass
class Quantity:
    """Errors and truths of one output, pooled over seeds."""

    unit: float
    errors: list[Tensor] = field(default_factory=list)
    truths: list[Tensor] = field(default_factory=list)

    def add(self, found: Tensor, exact: Tensor) -> None:
        if found.shape != exact.shape:
            raise ValueError(f"its output is {list(found.shape)}, not {list(exact.shape)}")
        self.errors.append((found.double() - exact).flatten())
        self.truths.append(exact.flatten())

    def relative(self) -> tuple[float, float]:
        """(RMS, worst) error, each relative to the truth's own RMS or largest element."""
        error, exact = torch.cat(self.errors), torch.cat(self.truths)
        worst = torch.cat(self.errors).abs().max() / exact.abs().max()
        return float(error.norm() / exact.norm()), float(worst)


Quantities = dict[str, Quantity]


class Gate:
    """The gate of one case: truths and eager's errors are computed once."""

    def __init__(self, case: Case, device: str, seeds: int = 5) -> None:
        self.case, self.device = case, device
        # Small cases are pooled over seeds; from some thousand rows on, one has as many independent errors.
        self.seeds = range(seeds if 0 < case.pairs <= 2**21 else 1)
        self.inputs = [case.inputs(device, seed) for seed in self.seeds]
        self._truths: dict[int, tuple[Tensor, list[Tensor]]] = {}
        self._eager: Quantities | None = None

    def judge(self, contender: Contender) -> tuple[Verdict, Work]:
        """Run ``contender`` and check it.

        Returns:
            The verdict, and the contender set up on the first seed, warm: what is timed is what was checked.

        Raises:
            Unavailable: it cannot run the case.
        """
        work = self._prepare(contender, 0)
        if contender.kind == "line":
            return Verdict([]), work
        if isinstance(self.case, Perturb):
            return Verdict(self._perturbation(contender, work)), work
        found = self._measure(contender, work)
        plain = contender.impl == "eager"
        if plain:
            self._eager = found
        slack = 1.0 if contender.kind == "ours" else RIVAL_SLACK
        return Verdict(bars(found, None if plain else self._eager, slack, yardstick=plain)), work

    def _prepare(self, contender: Contender, seed: int) -> Work:
        return prepare(contender, self.case, self.inputs_of(contender, seed))

    def inputs_of(self, contender: Contender, seed: int) -> Inputs:
        """The inputs of one seed in the contender's dtype."""
        if contender.dtype is None:
            return self.inputs[seed]
        return self.case.inputs(self.device, seed, contender.dtype)

    def _measure(self, contender: Contender, first: Work) -> Quantities:
        found: Quantities = {}
        for seed in self.seeds:
            # Every other seed would compile anew, or take as long again as all others together.
            if seed and (contender.compiled or contender.matrices > MANY):
                break
            work = first if seed == 0 else self._prepare(contender, seed)
            work.once()
            if isinstance(self.case, Loss):
                self._add_loss(found, contender, work, seed)
            elif isinstance(self.case, Similarity):
                self._add_similarity(found, work, seed)
            work.reset()
        return found

    def _add_loss(self, found: Quantities, contender: Contender, work: Work, seed: int) -> None:
        assert isinstance(self.case, Loss)
        if seed not in self._truths:
            self._truths[seed] = truth.loss(self.case, self.inputs[seed])
        rows, grads = self._truths[seed]
        value = work.output["value"]
        # The mean's own error says little (row errors cancel), so it is held against the RMS of the rows.
        spread = rows.square().mean().sqrt()
        _quantity(found, "value mean", value).add(value.detach() - rows.mean() + spread, spread)
        if not contender.compiled:  # another reduction is another compilation
            leaves = self.inputs_of(contender, seed)
            with torch.no_grad():
                each = contender.build(self.case, leaves)(*leaves.leaves, reduction="none")
            _quantity(found, "value", each).add(each, rows)
        for index, (grad, exact) in enumerate(zip(work.output["grads"], grads, strict=True)):
            _quantity(found, f"grad {index}", grad).add(grad, exact)

    def _add_similarity(self, found: Quantities, work: Work, seed: int) -> None:
        assert isinstance(self.case, Similarity)
        inputs = self.inputs[seed]
        if self.case.k:
            values, indices = work.output["value"]
            best, chosen = truth.topk(self.case, inputs, indices)
            _quantity(found, "value", values).add(values, best)
            _quantity(found, "value at the indices", values).add(values, chosen)
            return
        if seed not in self._truths:
            self._truths[seed] = truth.similarity(self.case, inputs)
        exact, grads = self._truths[seed]
        _quantity(found, "value", work.output["value"]).add(work.output["value"].detach(), exact)
        for index, (grad, exact_grad) in enumerate(zip(work.output["grads"], grads, strict=True)):
            _quantity(found, f"grad {index}", grad).add(grad, exact_grad)

    def _perturbation(self, contender: Contender, work: Work) -> list[Check]:
        assert isinstance(self.case, Perturb)
        work.once()
        image = work.output["value"].clone()
        ours = contender.kind == "ours"
        if self.case.op == "random_start_":
            checks = distribution(self.case, self.inputs[0], image)
            if ours:
                checks.append(self._same_bits(image))
        else:
            quantity = _quantity({}, "value", image)
            quantity.add(image, truth.perturb(self.case, self.inputs[0]))
            rms, worst = quantity.relative()
            slack = 1.0 if ours else RIVAL_SLACK
            # Tighter than the bar of the losses: 8 u of bfloat16 is longer than a step.
            checks = [
                Check("value error", rms, 2 * slack * quantity.unit),
                Check("worst value error", worst, 4 * slack * quantity.unit),
            ]
        return checks + constraint(self.case, self.inputs[0], image, exactly=ours)

    def _same_bits(self, image: Tensor) -> Check:
        """Random starts are the same from every implementation, to the bit."""
        reference = next(c for c in contenders(self.case) if c.impl == "reference")
        work = self._prepare(reference, 0)
        work.once()
        return Check("elements unlike the reference's", float((image != work.output["value"]).sum()), 0)


def bars(found: Quantities, eager: Quantities | None, slack: float, *, yardstick: bool = False) -> list[Check]:
    """The checks of the numerical bar; ``eager`` None = it could not run, and round-off alone is the bar."""
    checks = []
    for name, quantity in found.items():
        rms, worst = quantity.relative()
        # Eager's mean may be right by luck: the mean is held to the bar of the rows.
        rival = (eager or {}).get("value" if name == "value mean" else name)
        rms_eager, worst_eager = rival.relative() if rival else (0.0, 0.0)
        allowed = slack * max(1.5 * rms_eager, 8 * quantity.unit)
        allowed_worst = slack * max(2 * worst_eager, 16 * quantity.unit)
        if yardstick:
            allowed = allowed_worst = math.sqrt(quantity.unit)
        checks.append(Check(f"{name} error", rms, allowed))
        checks.append(Check(f"worst {name} error", worst, allowed_worst))
    return checks


def constraint(case: Perturb, inputs: Inputs, image: Tensor, *, exactly: bool) -> list[Check]:
    """How far outside the ball and [0, 1] the image is; rivals are granted rounding errors."""
    x = inputs.leaves[2]
    room = 0.0 if exactly else 8 * torch.finfo(x.dtype).eps
    outside = float((image.double() - image.double().clamp(0, 1)).abs().max())
    if case.norm == "linf":
        wide, centre = image.float(), x.float()
        out_of_ball = float(torch.maximum(wide - (centre + case.eps), (centre - case.eps) - wide).max())
    else:
        order = 2 if case.norm == "l2" else 1
        out_of_ball = float(truth.norms(image.double() - x.double(), order).max() / case.eps - 1 - 1e-6)
        room *= x[0].numel() ** (1 / order)
    return [Check("distance beyond [0, 1]", outside, room), Check("distance beyond the ball", out_of_ball, room)]


def distribution(case: Perturb, inputs: Inputs, image: Tensor) -> list[Check]:
    """Mean and mean square of a uniform point of the ball, within five standard errors and the dtype's grid."""
    delta = image.double() - inputs.leaves[2].double()
    size, count = delta[0].numel(), delta.numel()
    if case.norm == "linf":
        scale, spread = case.eps / math.sqrt(3), math.sqrt(4 / 5)
        square = float(delta.square().mean()) / scale**2
    else:
        scale, spread = case.eps / math.sqrt(size + 2), 2 / math.sqrt(size)
        square = float(delta.square().mean()) / scale**2
    # Storing x + delta rounds delta to the grid of x, towards x: halves lose that much of it.
    grid = 4 * torch.finfo(image.dtype).eps / scale
    return [
        Check("mean of the noise", abs(float(delta.mean())) / scale, 5 / math.sqrt(count) + grid),
        Check("mean square of the noise, off by", abs(square - 1), 5 * spread / math.sqrt(count) + grid),
    ]


def _quantity(found: Quantities, name: str, output: Tensor) -> Quantity:
    return found.setdefault(name, Quantity(torch.finfo(output.dtype).eps / 2))
