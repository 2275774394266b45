"""The training loop of every stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clead.config import OnNonfinite, OptimizerConfig
from clead.config import Stage as StageName
from clead.engine.gradients import add_gradients
from clead.engine.optim import build_optimizer, learning_rate
from clead.engine.prefetch import ahead
from clead.engine.profile import Profile
from clead.engine.progress import Progress, Stage
from clead.engine.run import RunFolder
from clead.engine.signals import held_back
from clead.engine.training import Training
from clead.engine.watch import Watch
from clead.errors import raise_stopped
from clead.methods.base import Batch, Method
from clead.rng import permutation


@dataclass(frozen=True)
class Unlabeled:
    """Images of another data set than the one trained on.

    Attributes:
        images: indices [B] -> images of those samples.
        size: number of samples; the epochs go by it, not by the size of what is trained on.
    """

    images: Callable[[Tensor], Tensor]
    size: int


@dataclass(frozen=True)
class Fit:
    """What to train, and on what.

    Attributes:
        stage: name of the stage.
        model: whose whole state a checkpoint keeps.
        trained: the part that is trained: its parameters are optimised, and it alone is in train mode.
        loss: batch -> terms of the loss, scalars whose sum is minimised.
        images: indices [B] -> images (or features) of those samples, the same ones in every epoch.
        labels: int64 [N], all labels of the split.
        epochs: passes over the split.
        batch_size: samples per step; a smaller last batch is dropped.
        optimizer: optimiser and schedule.
        seed: seed of the run.
        checkpoint_every: epochs between checkpoints.
        checkpoint_minutes: minutes after which one is due in any case; 0 goes by epochs only.
        profile: of some of its steps.
        accumulate: parts of a batch whose losses are differentiated one after the other.
        on_nonfinite: what a loss or gradient that is not finite does: stop, or skip the step and count it.
        meta: what a checkpoint says of the model.
        method: whose state a checkpoint keeps beside the model's; None where the loss is no method's.
        unlabeled: images of another data set, for batches to bring along.
        prefetch: batches that a thread makes ready before their step, those of the next epoch too; 0 for images that
            need no waiting.
        start_epoch: called with the number of every epoch (from 0) before its first step.
        score: called after every epoch, in eval mode; the result is what had the highest score. None keeps the last.
        scored_on: the split whose accuracy that is.
    """

    stage: StageName
    model: nn.Module
    trained: nn.Module
    loss: Callable[[Batch], dict[str, Tensor]]
    images: Callable[[Tensor], Tensor]
    labels: Tensor
    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    seed: int
    checkpoint_every: int
    meta: dict[str, object]
    checkpoint_minutes: float = 0.0
    accumulate: int = 1
    profile: Profile = field(default_factory=Profile)
    on_nonfinite: OnNonfinite = "stop"
    method: Method[Any] | None = None
    unlabeled: Unlabeled | None = None
    prefetch: int = 0
    start_epoch: Callable[[int], None] | None = None
    score: Callable[[], float] | None = None
    scored_on: Literal["val", "test"] = "val"

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self.labels) // self.batch_size

    def train_mode(self) -> None:
        """Put ``trained`` in train mode, and nothing else of the model."""
        self.model.eval()
        self.trained.train()


def fit(task: Fit, folder: RunFolder, progress: Progress) -> None:
    """Train, from the latest good checkpoint of the stage if there is one, to the end; ends with a checkpoint.

    A signal that stops the command (``clead.errors.STOPS``) first saves a checkpoint at the end of the step.
    """
    parameters = [parameter for parameter in task.trained.parameters() if parameter.requires_grad]
    training = Training(task, build_optimizer(parameters, task.optimizer), folder, Watch(task, progress.note))
    training.restore(progress.note)
    total, first = training.total, training.first
    folder.rewind_metrics(task.stage, first)
    if first < total or total == 0:
        with held_back() as stop:
            if first < total:
                shown = progress.stage(task.stage, total_steps=total, epochs=task.epochs, first_step=first + 1)
                with task.profile, shown as display:
                    _train(training, display, stop)
            training.best.restore(task)
            training.save(total)
            if stop:
                raise_stopped(stop[0])
    training.watch.close()
    task.model.eval()


def _train(training: Training, display: Stage, stop: list[int]) -> None:
    task, per_epoch = training.task, training.task.steps_per_epoch
    with closing(batches(task, training.first)) as steps:
        for step, batch in task.profile.each(steps):
            if step == training.first or step % per_epoch == 0:
                begin(task, step)
            _train_step(training, step, batch, display)
            if (step + 1) % per_epoch == 0:
                training.best.update(task, (step + 1) // per_epoch, training.watch)
            if step + 1 < training.total and (stop or training.due(step + 1)):
                training.guard.check(training.folder, partial(_batch_of, task))
                training.save(step + 1)
                if stop:
                    raise_stopped(stop[0])


def begin(task: Fit, step: int) -> None:
    """Before ``step``, the first of an epoch or that at which a training continues."""
    epoch, index = divmod(step, task.steps_per_epoch)
    if index == 0 and task.start_epoch is not None:
        with task.profile.part("epoch start"):
            task.start_epoch(epoch)
    task.train_mode()


def _train_step(training: Training, step: int, batch: Batch, display: Stage) -> None:
    task, total = training.task, training.total
    lr = learning_rate(task.optimizer, step, task.steps_per_epoch, task.epochs)
    # Reading the loss waits for the device, so long trainings do it about a thousand times only.
    logged = step % (total // 1000 + 1) == 0 or step + 1 == total
    metrics: dict[str, Tensor] = {}
    training.watch.arm(logged)
    terms = _step(task, replace(batch, metrics=metrics if logged else None), training, lr)
    if logged or training.guard.reads_at_once:
        training.guard.check(training.folder, partial(_batch_of, task))
    position = {"epoch": step // task.steps_per_epoch + 1, "step": step + 1}
    if not logged:
        display.update(**position, loss=display.loss, images=task.batch_size)
        return
    values = {name: term.item() for name, term in terms.items()}
    loss = sum(values.values())
    display.update(**position, loss=loss, images=task.batch_size)
    beside: dict[str, Any] = {"lr": lr, "images_per_s": round(display.images_per_s, 1)}
    numbers = {name: value.item() for name, value in metrics.items()} | training.watch.spread(step)
    training.watch.one_step(step, numbers)
    numbers |= {"skipped_steps": training.guard.skipped} if training.guard.skipped else {}
    if numbers:
        beside["metrics"] = {name: value for name, value in numbers.items() if math.isfinite(value)}
    beside["seconds"] = round(training.elapsed, 3)
    terms_beside = {name: value for name, value in values.items() if len(values) > 1 and math.isfinite(value)}
    shown = loss if math.isfinite(loss) else None
    training.folder.log(stage=task.stage, **position, loss=shown, **beside, **terms_beside)


def batches(task: Fit, first: int) -> Generator[tuple[int, Batch], None, None]:
    """The steps from ``first`` of the stage on, to its end: (step of the stage, batch)."""
    steps = range(first, task.epochs * task.steps_per_epoch)
    for batch in ahead(_maker(task), steps, task.prefetch, task.labels.device):
        yield batch.step, batch


def _maker(task: Fit) -> Callable[[int], Batch]:
    """What makes the batch of a step: of the task and the step alone, so that it may be made in an earlier epoch."""
    order = lru_cache(maxsize=2)(permutation)  # of this data set and of the other one
    total = task.epochs * task.steps_per_epoch

    def samples(step: int, size: int) -> Tensor:
        epoch, index = divmod(step, size // task.batch_size)
        whole = order(task.seed, size, epoch, task.labels.device)
        return whole[index * task.batch_size : (index + 1) * task.batch_size]

    def make(step: int) -> Batch:
        own, other = samples(step, len(task.labels)), None
        if task.unlabeled is not None:
            drawn = samples(step, task.unlabeled.size)
            other = Batch(task.unlabeled.images(drawn), torch.full_like(drawn, -1), drawn, step, task.seed)
        return Batch(task.images(own), task.labels[own], own, step, task.seed, step / total, other)

    return make


def _batch_of(task: Fit, step: int) -> Batch:
    """What step ``step`` of the stage sees, or saw."""
    return _maker(task)(step)


def _step(task: Fit, batch: Batch, training: Training, lr: float) -> dict[str, Tensor]:
    optimizer, guard, part = training.optimizer, training.guard, task.profile.part
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    guard.before()
    with part("backward"):
        terms = add_gradients(task.profile.labelled("loss", task.loss), batch, task.accumulate)
    guard.after(batch.step, torch.stack(list(terms.values())).sum())
    with part("optimizer"):
        optimizer.step()
    return terms
