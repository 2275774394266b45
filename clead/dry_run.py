"""``python -m clead.train METHOD --dry-run``: what a run would do and about how long, from a few measured steps."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from clead import report
from clead.config import Stage
from clead.engine.gradients import add_gradients
from clead.engine.loop import Fit, batches, begin
from clead.engine.optim import build_optimizer
from clead.models import Model
from clead.stages import Session, classification, pretraining

MEASURED = 20
"""Steps of every stage that are measured, after one that is not; at most one epoch."""


@dataclass(frozen=True)
class Estimate:
    """What a stage would take.

    Attributes:
        epochs: passes over its data.
        steps: optimiser steps in all.
        step: seconds of one, the median.
        epoch: seconds that its method spends before every epoch.
    """

    epochs: int
    steps: int
    step: float
    epoch: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.steps * self.step + self.epochs * self.epoch


def estimate(task: Fit) -> Estimate:
    """Do the first steps of a stage; the model is changed by them."""
    start = time.perf_counter()
    if task.epochs:
        begin(task, 0)
    epoch = time.perf_counter() - start
    optimizer = build_optimizer([x for x in task.trained.parameters() if x.requires_grad], task.optimizer)
    seconds = []
    for _, batch in itertools.islice(batches(task, 0), min(MEASURED + 1, task.steps_per_epoch)):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        add_gradients(task.loss, batch, task.accumulate)
        optimizer.step()
        if task.labels.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:] or seconds or [0.0])
    return Estimate(task.epochs, task.epochs * task.steps_per_epoch, step, epoch)


def show(session: Session, model: Model, console: Console) -> None:
    """Print the stages of a run with their steps and times; writes nothing."""
    plan, config, train = session.plan, session.config, session.splits.train
    shape = "x".join(map(str, train.images.shape[1:]))
    report.emit(
        console,
        f"{plan.out}: {plan.method}, recipe {plan.recipe}, on {session.device.type}",
        f"{len(train):,} training images of {shape} from {config.data}, {session.splits.num_classes} classes",
        f"{config.encoder.name} with {_count(model.encoder):,} parameters, its heads with {_count(model.heads):,}",
    )
    table = Table("stage", "epochs", "steps", "ms a step", "time", box=None, pad_edge=False)
    total = 0.0
    for stage in config.stages:
        if stage == "evaluate":
            table.add_row(stage, "", "", "", "not estimated")
            continue
        found = estimate(pretraining(session, model) if stage == "pretrain" else _classification(session, model, stage))
        total += found.seconds
        table.add_row(
            stage, f"{found.epochs}", f"{found.steps:,}", f"{1000 * found.step:.1f}", _duration(found.seconds)
        )
    console.print(table)
    report.emit(console, f"about {_duration(total)} of training, from {MEASURED} steps of each stage")
    if config.compare:
        report.emit(console, f"about as much again for each of the models compared with ({', '.join(config.compare)})")


def _classification(session: Session, model: Model, stage: Stage) -> Fit:
    """The stage on an encoder that is not trained yet; zeros stand for features, as to encode all images takes long."""
    config = session.config
    splits = session.sources.of(config, stage).to(session.device, config.residence)
    branch = config.finetuning(stage).branch or session.branch
    zeros = torch.zeros(1, model.encoder.feature_dim, device=session.device).expand(len(splits.train), -1)
    return classification(model, stage, config, splits, branch, {}, features=zeros)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
