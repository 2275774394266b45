"""The training loop of every stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from clead.config import OptimizerConfig
from clead.config import Stage as StageName
from clead.engine import checkpoint
from clead.engine.optim import build_optimizer, learning_rate
from clead.engine.progress import Progress, Stage
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.methods.base import Batch, Method
from clead.rng import permutation


@dataclass(frozen=True)
class Unlabeled:
    """Images of another data set than the one trained on.

    Attributes:
        images: indices [B] -> images of those samples.
        size: number of samples.
    """

    images: Callable[[Tensor], Tensor]
    size: int

    def batch(self, step: int, batch_size: int, seed: int, device: torch.device) -> Batch:
        """What step ``step`` of a stage sees: the epochs go by this data set's own size."""
        epoch, index = divmod(step, self.size // batch_size)
        samples = _order(seed, self.size, epoch, device)[index * batch_size : (index + 1) * batch_size]
        return Batch(self.images(samples), torch.full_like(samples, -1), samples, step, seed)


_order = lru_cache(maxsize=1)(permutation)


@dataclass(frozen=True)
class Fit:
    """What to train, and on what.

    Attributes:
        stage: name of the stage.
        model: whose whole state a checkpoint keeps.
        trained: the part that is trained: its parameters are optimised, and it alone is in train mode.
        loss: batch -> terms of the loss, scalars whose sum is minimised.
        images: indices [B] -> images (or features) of those samples.
        labels: int64 [N], all labels of the split.
        epochs: passes over the split.
        batch_size: samples per step; a smaller last batch is dropped.
        optimizer: optimiser and schedule.
        seed: seed of the run.
        checkpoint_every: epochs between checkpoints.
        meta: what a checkpoint says of the model.
        method: whose state a checkpoint keeps beside the model's; None where the loss is no method's.
        unlabeled: images of another data set, for batches to bring along.
        start_epoch: called with the number of every epoch (from 0) before its first step.
        score: called after every epoch, in eval mode; the result is what had the highest score. None keeps the last.
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
    method: Method[Any] | None = None
    unlabeled: Unlabeled | None = None
    start_epoch: Callable[[int], None] | None = None
    score: Callable[[], float] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self.labels) // self.batch_size


@dataclass
class Best:
    """The weights of the epoch with the highest score so far; of equals, the earliest.

    Attributes:
        epoch: number of epochs trained.
        score: its score.
        weights: state dict of the trained part.
    """

    epoch: int = 0
    score: float = -math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def update(self, task: Fit, epoch: int) -> None:
        """Look at the weights as they are now."""
        if task.score is None:
            return
        task.model.eval()
        score = task.score()
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.weights = {name: value.detach().clone() for name, value in task.trained.state_dict().items()}

    def restore(self, task: Fit) -> None:
        """Put them back."""
        if self.weights:
            task.trained.load_state_dict(self.weights)


def fit(task: Fit, folder: RunFolder, progress: Progress) -> None:
    """Train, from the latest checkpoint of the stage if there is one, to the end; ends with a checkpoint."""
    parameters = [parameter for parameter in task.trained.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, task.optimizer)
    first_epoch, best = _restore(task, optimizer, folder)
    total = task.epochs * task.steps_per_epoch
    folder.rewind_metrics(task.stage, first_epoch * task.steps_per_epoch)
    if first_epoch < task.epochs:
        with progress.stage(
            task.stage, total_steps=total, epochs=task.epochs, first_step=first_epoch * task.steps_per_epoch + 1
        ) as display:
            for epoch in range(first_epoch, task.epochs):
                if task.start_epoch is not None:
                    task.start_epoch(epoch)
                _train_epoch(task, epoch, optimizer, folder, display)
                best.update(task, epoch + 1)
                if (epoch + 1) % task.checkpoint_every == 0 and epoch + 1 < task.epochs:
                    _save(task, optimizer, folder, epoch + 1, best)
    if first_epoch < task.epochs or task.epochs == 0:
        best.restore(task)
        _save(task, optimizer, folder, task.epochs, best)
    task.model.eval()


def _train_epoch(task: Fit, epoch: int, optimizer: torch.optim.Optimizer, folder: RunFolder, display: Stage) -> None:
    total = task.epochs * task.steps_per_epoch
    # Reading the loss waits for the device, so long trainings do it about a thousand times only.
    log_every = total // 1000 + 1
    loss = None
    for step, batch in _batches(task, epoch):
        lr = learning_rate(task.optimizer, step, task.steps_per_epoch, task.epochs)
        logged = step % log_every == 0 or step + 1 == total
        metrics: dict[str, Tensor] = {}
        terms = _step(task, replace(batch, metrics=metrics if logged else None), optimizer, lr)
        if logged:
            values = {name: term.item() for name, term in terms.items()}
            loss = _checked_sum(values, task.stage, step)
        display.update(epoch=epoch + 1, step=step + 1, loss=loss, images=task.batch_size)
        if logged:
            position = {"stage": task.stage, "epoch": epoch + 1, "step": step + 1}
            beside: dict[str, Any] = {"lr": lr, "images_per_s": round(display.images_per_s, 1)}
            if metrics:
                numbers = {name: value.item() for name, value in metrics.items()}
                beside["metrics"] = {name: value for name, value in numbers.items() if math.isfinite(value)}
            folder.log(**position, loss=loss, **beside, **(values if len(values) > 1 else {}))


def _batches(task: Fit, epoch: int) -> Iterator[tuple[int, Batch]]:
    """The steps of an epoch: (step of the stage, batch)."""
    total = task.epochs * task.steps_per_epoch
    task.model.eval()
    task.trained.train()
    order = permutation(task.seed, len(task.labels), epoch, task.labels.device)
    for index in range(task.steps_per_epoch):
        samples = order[index * task.batch_size : (index + 1) * task.batch_size]
        step = epoch * task.steps_per_epoch + index
        other = None
        if task.unlabeled is not None:
            other = task.unlabeled.batch(step, task.batch_size, task.seed, samples.device)
        yield step, Batch(task.images(samples), task.labels[samples], samples, step, task.seed, step / total, other)


def _restore(task: Fit, optimizer: torch.optim.Optimizer, folder: RunFolder) -> tuple[int, Best]:
    """Load the latest checkpoint of the stage; the epoch to continue with, and the best until then."""
    path = checkpoint.latest(folder.checkpoints, task.stage)
    if path is None:
        return 0, Best()
    saved = checkpoint.load(path)
    epoch, step = int(saved.meta["epoch"]), saved.meta["step"]
    if epoch * task.steps_per_epoch != step:
        expected = f"the step {epoch * task.steps_per_epoch} for epoch {epoch}"
        raise UserError(f"{path / 'meta.json'}: expected {expected}, found {step}")
    saved.load_weights(task.model)
    optimizer.load_state_dict(saved.state["optimizer"])
    if task.method is not None:
        state = saved.state.get("method", {})
        task.method.load_state_dict({name: value.to(task.labels.device) for name, value in state.items()})
    return epoch, Best(**saved.state.get("best", {}))


def _save(task: Fit, optimizer: torch.optim.Optimizer, folder: RunFolder, epoch: int, best: Best) -> None:
    meta = {"stage": task.stage, "step": epoch * task.steps_per_epoch, "epoch": epoch, "model": task.meta}
    state: dict[str, Any] = {"optimizer": optimizer.state_dict()}
    if best.weights:
        meta["selected"] = {"epoch": best.epoch, "val_accuracy": best.score}
        if epoch < task.epochs:  # at the end the model itself has these weights
            state["best"] = vars(best)
    if task.method is not None:
        state["method"] = task.method.state_dict()
    checkpoint.save(folder.checkpoints, meta, task.model.state_dict(), state)


def _step(task: Fit, batch: Batch, optimizer: torch.optim.Optimizer, lr: float) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    terms = task.loss(batch)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return terms


def _checked_sum(values: dict[str, float], stage: str, step: int) -> float:
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{stage}, step {step + 1}: the loss term {name!r} must be finite, got {value}")
    return sum(values.values())
