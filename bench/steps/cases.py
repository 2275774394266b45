"""What is timed: one training step of a method, in several forms."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clead.config import SpeedConfig
from clead.engine.optim import build_optimizer
from clead.loading import InputSpec, build_model
from clead.methods import METHODS, Batch
from clead.models import initialise
from clead.recipes import RECIPES

from ..timing import Stage
from .loading import PILLoading
from .plain import make_plain

CHANNELS = {"digits": 1, "cifar10": 3}
SIZES = {"digits": 8, "cifar10": 32}
POOL = 600  # images; AdvCL asks for 500


@dataclass(frozen=True)
class Form:
    """A form of a step: the official codes' attack or ours, the levers, and how images come."""

    plain: bool
    speed: SpeedConfig
    loading: bool = False


_OFF = SpeedConfig(winograd=False, fold=False)
FORMS = {
    "plain": Form(True, _OFF),
    "plain+loading": Form(True, _OFF, loading=True),
    "plain+channels_last": Form(True, replace(_OFF, channels_last=True)),
    "plain+bf16": Form(True, replace(_OFF, precision="bf16")),
    "plain+winograd": Form(True, replace(_OFF, winograd=True)),
    "frozen": Form(False, _OFF),
    "fold": Form(False, SpeedConfig(winograd=False)),
    "fold+channels_last": Form(False, SpeedConfig(winograd=False, channels_last=True)),
    "fold+winograd": Form(False, SpeedConfig()),
    "fold+channels_last+bf16": Form(False, SpeedConfig(channels_last=True, precision="bf16")),
    "fold+compile": Form(False, SpeedConfig(executor="compile")),
    "fold+channels_last+bf16+graph": Form(False, SpeedConfig(channels_last=True, precision="bf16", executor="graph")),
}


@dataclass(frozen=True)
class StepCase:
    """A method on images of a data set's shape, after that recipe but for the number of attack steps."""

    method: str
    data: str
    batch: int
    steps: int = 5

    @property
    def name(self) -> str:
        """method-encoder-batch."""
        return f"{self.method}-{self.config.encoder.name}-b{self.batch}"

    @property
    def config(self) -> Any:
        """The recipe's, with attacks of at most ``steps`` steps."""
        config: Any = RECIPES[f"{self.method}_{self.data}"].config
        if hasattr(config, "attack"):
            config = replace(config, attack=replace(config.attack, steps=min(config.attack.steps, self.steps)))
        if hasattr(config, "contrastive_steps"):
            config = replace(config, contrastive_steps=min(config.contrastive_steps, self.steps))
        return config


@dataclass
class Step:
    """One step, ready to run: what ``timing`` takes; every run starts from the weights the last one left."""

    stages: list[Stage]
    reset: Callable[[], None]
    terms: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def once(self) -> float:
        """One step, untimed; the loss."""
        for stage in self.stages:
            stage()
        return float(torch.stack(list(self.terms.values())).detach().sum())


def prepare(case: StepCase, form: Form, device: str) -> Step:
    """Set up ``case`` in ``form``; ``step.seconds`` grows with every run by what its parts take."""
    config = replace(case.config, speed=form.speed, impl="reference" if form.plain else "auto")
    method = METHODS[case.method](config)
    if form.plain:
        make_plain(method, case.method)
    channels, size = CHANNELS[case.data], SIZES[case.data]
    pool = torch.rand(POOL, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    spec = InputSpec(channels, 10, (0.5,) * channels, (0.25,) * channels)
    model = build_model(method, spec)
    initialise(model, 0)
    module: Any = model.to(device).train()
    if form.speed.channels_last:
        module.to(memory_format=torch.channels_last)
    model.encoder.by_rule = not (form.plain or form.speed.channels_last)  # the official codes have one layout
    computing = model.computing_in(form.speed.compute_dtype)
    samples = torch.arange(case.batch, device=device)
    for branch in config.encoder.bn.branches:  # statistics that fit, or everything overflows
        for _ in range(20):
            model.features(pool[:16], branch=branch)
    method.start_epoch(model, pool.__getitem__, POOL, 0)
    model.train()
    optimizer = build_optimizer(model.parameters(), replace(config.optimizer, lr=1e-4, final_lr=0.0, warmup_lr=0.0))
    batch = Batch(pool[samples], samples % 10, samples, step=0, seed=0, progress=0.1)
    step = Step([], lambda: None)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        step.terms = method.training_loss(computing, batch)
        torch.stack(list(step.terms.values())).sum().backward()
        update()

    update = _timed(optimizer.step, "optimizer", step, device)
    wrapped: Any = method
    for name in ("augment", "adv_augment"):
        if hasattr(method, name):
            augmentation = getattr(method, name)
            augmentation = PILLoading(augmentation, pool) if form.loading else augmentation
            setattr(wrapped, name, _Augmentation(augmentation, step, device))
    wrapped.perturb = _timed(method.perturb, "attack", step, device)
    wrapped.constant = _timed(method.constant, "attack", step, device)
    step.stages = [run]
    return step


class _Augmentation:
    """An augmentation whose calls are timed."""

    def __init__(self, augmentation: Any, step: Step, device: str) -> None:
        self._augmentation, self._where = augmentation, (step, device)
        self._call = _timed(augmentation, "augment", *self._where)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def faded(self, strength: float) -> _Augmentation:
        return _Augmentation(self._augmentation.faded(strength), *self._where)


def _timed(function: Callable[..., Any], part: str, step: Step, device: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        synchronize(device)
        start = time.perf_counter()
        result = function(*arguments, **options)
        synchronize(device)
        step.seconds[part] = step.seconds.get(part, 0.0) + time.perf_counter() - start
        return result

    return call


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
