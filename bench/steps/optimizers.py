"""One step of every optimiser on a ResNet-18's parameters: one at a time, in lists, and as clead has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clead.config import OptimizerConfig
from clead.engine.optim import build_optimizer
from clead.models import BatchNormConfig, ResNet

from .. import rows, table, timing
from ..rows import Row
from ..run import Options
from ..timing import Stage

CONFIGS = {
    "sgd": OptimizerConfig("sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4),
    "adam": OptimizerConfig("adam", lr=1e-4, weight_decay=1e-4),
    "lars": OptimizerConfig("lars", lr=1e-4, momentum=0.9, weight_decay=1e-4),
}
TOLERANCE = 1e-5


@dataclass
class Update:
    """One step, ready to run: what ``timing`` takes."""

    stages: list[Stage]
    parameters: list[nn.Parameter]
    reset: Callable[[], None] = lambda: None


def forms(name: str) -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    """The ways to step: ``loop`` is the plain one."""
    config = CONFIGS[name]
    if name == "lars":
        return {"loop": lambda p: LoopLARS(p, config), "clead": lambda p: build_optimizer(p, config)}
    same: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    same |= {"momentum": config.momentum} if name == "sgd" else {}
    kind: Any = torch.optim.SGD if name == "sgd" else torch.optim.Adam
    return {
        "loop": lambda p: kind(p, foreach=False, **same),
        "foreach": lambda p: kind(p, foreach=True, **same),
        "clead": lambda p: build_optimizer(p, config),
    }


def measure(name: str, options: Options, environment: Row) -> list[Row]:
    """All forms in turns, after three steps of each from the same weights agreed with those of the plain one."""
    updates = {form: prepare(name, form, options.device) for form in forms(name)}
    for update in updates.values():
        for _ in range(3):
            update.stages[0]()
    clock = timing.WallClock(synchronize=torch.cuda.synchronize if options.device == "cuda" else lambda: None)
    errors = {form: _off(update, updates["loop"]) for form, update in updates.items()}
    right = {form: update for form, update in updates.items() if errors[form] <= TOLERANCE}
    samples = timing.interleave(right, clock, seconds=0.3 if options.quick else 10.0, fewest=3, most=50)
    found: list[Row] = []
    for form in updates:
        row = dict.fromkeys(rows.COLUMNS) | environment
        row |= {"op": "optimizer", "case": f"{name}-resnet18", "impl": form, "mode": "full", "dtype": "fp32"}
        row |= {"kind": "ours" if form == "clead" else "rival", "clock": "wall", "value_error": errors[form]}
        row["command"] = f"python -m bench steps --case optimizer/{name} --threads {options.threads}"
        row["reason"] = "" if form in right else f"wrong: weights are off by {errors[form]:.1e}"
        if form in right:
            times = [timing.summarize([sum(stages) for stages in samples[one]]) for one in (form, "loop")]
            mine, plain = times
            row |= {"p50_ms": mine.p50, "p20_ms": mine.p20, "p80_ms": mine.p80, "min_ms": mine.min}
            row |= {"ratio_to_eager": plain.p50 / mine.p50, "samples": mine.samples}
        found.append(row)
    return found


def show(found: list[Row]) -> str:
    """One optimiser: a line for each form."""
    lines = [["form", "ms", "min", "x loop", "weights off by"]]
    for row in found:
        if not row["reason"]:
            times = [table.milliseconds(row[name]) for name in ("p50_ms", "min_ms")]
            lines.append([row["impl"], *times, f"{row['ratio_to_eager']:.2f}", f"{row['value_error']:.1e}"])
    refused = [f"  -- {row['impl']}: {row['reason']}" for row in found if row["reason"]]
    return "\n".join([f"\noptimizer  {found[0]['case']}", table.render(lines), *refused])


def prepare(name: str, form: str, device: str) -> Update:
    """Weights and gradients of a ResNet-18, and a step on them."""
    network = ResNet(18, in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, bn=BatchNormConfig()).to(device)
    parameters = list(network.parameters())
    for index, parameter in enumerate(parameters):
        ramp = torch.arange(parameter.numel(), dtype=torch.float64).add(index).view(parameter.shape)
        with torch.no_grad():
            parameter.copy_(0.1 * ramp.sin())
        parameter.grad = (0.01 * ramp.cos()).to(parameter)
    return Update([forms(name)[form](parameters).step], parameters)


def _off(update: Update, plain: Update) -> float:
    """How far the weights are from the plain form's: of all tensors the worst, relatively."""
    with torch.no_grad():
        pairs = zip(update.parameters, plain.parameters, strict=True)
        return max(float((mine - other).norm() / other.norm()) for mine, other in pairs)


class LoopLARS(torch.optim.Optimizer):
    """LARS as ACL's code has it: one tensor after the other, and two norms read back from the device for each."""

    def __init__(self, parameters: list[nn.Parameter], config: OptimizerConfig) -> None:
        super().__init__(parameters, {"config": config})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for weight in group["params"]:
                self._one(weight, weight.grad, group["config"])

    def _one(self, weight: Tensor, grad: Tensor, config: OptimizerConfig) -> None:
        norm, grad_norm = weight.norm().item(), grad.norm().item()
        ratio = 1.0
        if norm > 0 and grad_norm > 0:
            ratio = config.trust * norm / (grad_norm + config.weight_decay * norm)
        update = grad.add(weight, alpha=config.weight_decay).mul_(ratio)
        buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        buffer.mul_(config.momentum).add_(update)
        weight.add_(buffer, alpha=-config.lr)
