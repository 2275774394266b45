"""A stage under way: its optimiser, its best epoch, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clead.engine import checkpoint
from clead.engine.environment import changes, fingerprint
from clead.engine.guard import Guard
from clead.engine.run import RunFolder
from clead.engine.watch import Watch
from clead.errors import UserError

if TYPE_CHECKING:
    from clead.engine.loop import Fit


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

    def update(self, task: Fit, epoch: int, watch: Watch) -> None:
        """Look at the weights as they are now."""
        if task.score is None:
            return
        task.model.eval()
        score = task.score()
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.weights = {name: value.detach().clone() for name, value in task.trained.state_dict().items()}
        watch.overfitting(epoch, score, self.epoch, self.score)

    def restore(self, task: Fit) -> None:
        """Put them back."""
        if self.weights:
            task.trained.load_state_dict(self.weights)


@dataclass
class Training:
    """A stage under way.

    Attributes:
        task: what is trained.
        optimizer: of the task's parameters.
        folder: the run.
        best: the best epoch so far.
        first: steps already done when it began.
        watch: warns of what goes wrong.
        guard: keeps out numbers that are not finite.
        seconds: how long other processes have trained it before.
        began: when this process began, on the monotonic clock.
        saved_at: when the latest checkpoint was written, on the monotonic clock.
    """

    task: Fit
    optimizer: torch.optim.Optimizer
    folder: RunFolder
    watch: Watch
    best: Best = field(default_factory=Best)
    first: int = 0
    guard: Guard = field(init=False)
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.guard = Guard(self.task)

    @property
    def total(self) -> int:
        """Steps of the whole stage."""
        return self.task.epochs * self.task.steps_per_epoch

    @property
    def elapsed(self) -> float:
        """Seconds of the stage so far, all processes together."""
        return self.seconds + time.monotonic() - self.began

    def due(self, done: int) -> bool:
        """Whether a checkpoint is due after ``done`` steps."""
        minutes = self.task.checkpoint_minutes
        by_time = minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes
        return by_time or done % (self.task.checkpoint_every * self.task.steps_per_epoch) == 0

    def restore(self, note: Callable[[str], None]) -> None:
        """Load the latest good checkpoint of the stage, if there is one."""
        task = self.task
        saved = checkpoint.load_good(self.folder.checkpoints, task.stage, note)
        if saved is None:
            return
        step, epoch = saved.meta["step"], saved.meta["epoch"]
        if epoch != step // task.steps_per_epoch or step > self.total:
            expected = f"at most {self.total} steps, and the epoch that goes with them"
            raise UserError(f"{saved.path / 'meta.json'}: expected {expected}, found step {step} and epoch {epoch}")
        saved.load_weights(task.model)
        try:
            self.optimizer.load_state_dict(saved.state["optimizer"])
            if task.method is not None:
                state = saved.state.get("method", {})
                task.method.load_state_dict({name: value.to(task.labels.device) for name, value in state.items()})
            self.best = Best(**saved.state.get("best", {}))
            self.guard = Guard(task, int(saved.state.get("skipped", 0)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{saved.path / 'state.pt'}: expected the state of this training, found {error!r}"
            ) from error
        self.first = step
        self.seconds = _seconds(saved.meta)
        changed = changes(saved.meta.get("environment"), fingerprint(task.labels.device))
        if step < self.total and changed:
            differ = f"the steps after {step} may differ in their last bits from those of an uninterrupted run"
            note(f"{task.stage}: {differ}: {changed}")

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps."""
        task, best = self.task, self.best
        meta: dict[str, Any] = {
            "stage": task.stage,
            "step": step,
            "epoch": step // task.steps_per_epoch,
            "model": task.meta,
        }
        meta["seconds"] = round(self.elapsed, 3)
        meta["environment"] = fingerprint(task.labels.device)
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if best.weights:
            meta["selected"] = {"epoch": best.epoch, f"{task.scored_on}_accuracy": best.score}
            if step < self.total:  # at the end the model itself has these weights
                state["best"] = vars(best)
        if self.guard.skipped:
            state["skipped"] = self.guard.skipped
        if task.method is not None:
            state["method"] = task.method.state_dict()
        self.folder.sync_metrics()
        checkpoint.save(self.folder.checkpoints, meta, task.model.state_dict(), state)
        self.saved_at = time.monotonic()


def _seconds(meta: dict[str, Any]) -> float:
    """How long the stage had taken, 0.0 where a checkpoint does not say."""
    value = meta.get("seconds")
    return float(value) if isinstance(value, (int, float)) and 0 <= value < math.inf else 0.0
