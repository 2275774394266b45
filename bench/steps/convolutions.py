"""One 3x3 convolution of an encoder: forward, by its input and by its weight, as PyTorch and as we have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clead_kernels import build_info, conv3x3
from clead_kernels.convolution import PackedConv3x3

from .. import rates, rows, table, timing
from ..rows import Row
from ..run import Options
from ..timing import Stage

PASSES = ("forward", "data", "weight")
# Of the result, against float64; a direct sum is off by 2e-7, and the weight's gradient of large batches by 3e-6.
TOLERANCE = 5e-6


@dataclass(frozen=True)
class Case:
    """As many channels out as in, on square images."""

    part: str
    channels: int
    size: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.part}-{self.channels}x{self.size}x{self.size}-b{self.batch}"

    @property
    def flops(self) -> int:
        """Of a direct sum; about a tenth more than those at the border."""
        return 18 * self.batch * (self.channels * self.size) ** 2


@dataclass
class Pass:
    """One pass, ready to run: what ``timing`` takes."""

    stages: list[Stage]
    reset: Callable[[], None] = lambda: None


def grid(quick: bool, cuda: bool) -> list[Case]:
    """The stages of a ResNet-18 on CIFAR; or the encoder of the digits. None where PyTorch's are the only ones."""
    shapes = [(64, 4, 64)] if quick else [(64, 32, 16), (128, 16, 16), (256, 8, 16), (512, 4, 16), (64, 4, 512)]
    return [] if cuda or not build_info() else [Case(part, *shape) for shape, part in product(shapes, PASSES)]


def forms(case: Case) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's in both of its layouts; ours, which packs the weight itself, and ours of one packed before."""
    x, weight, grad = _operands(case)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad)]
    found = {"torch": _direct(case.part, x, weight, grad), "channels-last": _direct(case.part, *last)}
    ours = {"clead": partial(conv3x3, weight=weight, impl="native"), "clead-packed": PackedConv3x3(weight)}
    if case.part == "forward":
        return found | {form: partial(call, last[0]) for form, call in ours.items()}
    if case.part == "data":
        leaf = last[0].clone().requires_grad_()
        return found | {form: _derivative(call(leaf), leaf, last[2]) for form, call in ours.items()}
    leaf = weight.clone().requires_grad_()
    return found | {"clead": _derivative(conv3x3(last[0], leaf, impl="native"), leaf, last[2])}


def measure(case: Case, options: Options, environment: Row) -> list[Row]:
    """All forms in turns, after each agreed with float64."""
    calls = forms(case)
    truth = _direct(case.part, *(t.double() for t in _operands(case)))()
    errors = {form: float((call().double() - truth).norm() / truth.norm()) for form, call in calls.items()}
    right = {form: Pass([call]) for form, call in calls.items() if errors[form] <= TOLERANCE}
    samples = timing.interleave(right, timing.WallClock(), seconds=0.3 if options.quick else 3.0, fewest=5, most=100)
    times = {form: timing.summarize([sum(stages) for stages in taken]) for form, taken in samples.items()}
    line = 1e3 * case.flops / rates.product(torch.float32, options.device)
    found: list[Row] = []
    for form in calls:
        row = dict.fromkeys(rows.COLUMNS) | environment
        row |= {"op": "convolution", "case": case.name, "impl": form, "mode": case.part, "dtype": "fp32"}
        row |= {"kind": "ours" if "clead" in form else "rival", "clock": "wall", "value_error": errors[form]}
        row |= {"rows": case.batch, "flops": case.flops}
        row["command"] = f"python -m bench steps --case convolution/{case.name} --threads {options.threads}"
        row["command"] += " --quick" * options.quick
        row["reason"] = "" if form in right else f"wrong: off by {errors[form]:.1e}"
        if form in right:
            mine = times[form]
            row |= {"p50_ms": mine.p50, "p20_ms": mine.p20, "p80_ms": mine.p80, "min_ms": mine.min}
            row |= {"ratio_to_line": line / mine.p50, "samples": mine.samples}
            row["ratio_to_eager"] = times["torch"].p50 / mine.p50 if "torch" in times else None
        found.append(row)
    return found


def show(found: list[Row]) -> str:
    """One pass: a line for each form."""
    lines = [["form", "ms", "min", "x torch", "of matmul", "off by"]]
    for row in found:
        if not row["reason"]:
            times = [table.milliseconds(row[name]) for name in ("p50_ms", "min_ms")]
            ratio = "" if row["ratio_to_eager"] is None else f"{row['ratio_to_eager']:.2f}"
            lines.append([row["impl"], *times, ratio, f"{row['ratio_to_line']:.0%}", f"{row['value_error']:.1e}"])
    refused = [f"  -- {row['impl']}: {row['reason']}" for row in found if row["reason"]]
    return "\n".join([f"\nconvolution  {found[0]['case']}", table.render(lines), *refused])


def _operands(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = (case.batch, case.channels, case.size, case.size)
    x, grad = (torch.randn(images, generator=generator) for _ in range(2))
    return x, torch.randn(case.channels, case.channels, 3, 3, generator=generator) / (9 * case.channels) ** 0.5, grad


def _direct(part: str, x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    """PyTorch's, below autograd."""
    if part == "forward":
        return partial(F.conv2d, x, weight, padding=1)
    wanted: Any = [part == "data", part == "weight", False]
    backward = partial(torch.ops.aten.convolution_backward, grad, x, weight, None, [1, 1], [1, 1], [1, 1], False)
    return lambda: backward([0, 0], 1, wanted)[wanted.index(True)]


def _derivative(out: Tensor, by: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.autograd.grad(out, by, grad, retain_graph=True)[0]
