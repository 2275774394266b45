"""Keeps numbers that are not finite out of the weights, and keeps what is needed to see where they came from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from clead.engine.files import write_atomic
from clead.engine.gradients import add_gradients
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.methods.base import Batch

if TYPE_CHECKING:
    from clead.engine.loop import Fit

SCHEMA = 1
MOST_IN_A_ROW = 100


class Guard:
    """Looks at the loss and at every gradient of every step before the optimiser sees them.

    A step with a number that is not finite counts as one with a gradient of zero, and leaves the statistics of batch
    norm and what the method keeps as they were. Nothing is read back from a GPU for it: ``first`` and ``skipped`` are
    tensors there, which ``check`` reads where the loss is read anyway. On a CPU ``check`` follows every step.

    Args:
        task: what is trained.
        skipped: steps left out before this process.
    """

    def __init__(self, task: Fit, skipped: int = 0) -> None:
        self.task = task
        device = task.labels.device
        self.reads_at_once = device.type == "cpu"
        self._weights = [parameter for parameter in task.trained.parameters() if parameter.requires_grad]
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._first = torch.zeros((), dtype=torch.int64, device=device)  # counted from 1; 0 is none
        self._skipped = torch.full((), skipped, dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def skipped(self) -> int:
        """Steps left out so far."""
        return int(self._skipped)

    @torch.no_grad()
    def before(self) -> None:
        """Keep what a forward pass changes beside the gradients."""
        state = [] if self.task.method is None else list(self.task.method.state_dict().values())
        tensors = [tensor for tensor in (*self.task.model.buffers(), *state) if tensor.is_floating_point()]
        self._kept = [(tensor, tensor.clone()) for tensor in tensors]

    @torch.no_grad()
    def after(self, step: int, loss: Tensor) -> None:
        """Take a bad step's gradients away, before the optimiser steps.

        Args:
            step: of the stage, from 0.
            loss: what was differentiated.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        largest = torch.stack(torch._foreach_norm(gradients, ord=math.inf)) if gradients else loss
        bad = ~(largest.isfinite().all() & loss.isfinite())
        if self.reads_at_once and not bad:
            self._in_a_row.zero_()
            return
        for gradient in gradients:
            gradient.masked_fill_(bad, 0)
        for tensor, kept in self._kept:
            tensor.copy_(torch.where(bad, kept, tensor))
        begins = self._in_a_row == 0 if self.task.on_nonfinite == "skip" else self._first == 0
        self._first.copy_(torch.where(bad & begins, step + 1, self._first))
        self._skipped += bad
        self._in_a_row.add_(bad).mul_(bad)

    def check(self, folder: RunFolder, batch_of: Callable[[int], Batch]) -> None:
        """Stop if a step was bad, or under ``skip`` if a hundred in a row were.

        Args:
            folder: the run, where the batch is written to.
            batch_of: step (from 0) -> what that step saw.

        Raises:
            UserError: names the step, the number and the file that ``python -m clead.doctor --repro`` replays.
        """
        skip = self.task.on_nonfinite == "skip"
        if not self._first or (skip and self._in_a_row < MOST_IN_A_ROW):
            return
        step = int(self._first) - 1
        file = save_repro(folder, self.task, batch_of(step))
        many = f"{MOST_IN_A_ROW} steps in a row were left out, the first of them " if skip else ""
        raise UserError(
            f"{self.task.stage}, {many}step {step + 1}: {self._found(batch_of(step))}; "
            f"`python -m clead.doctor --repro {file}` replays it and shows where it begins"
        )

    def _found(self, batch: Batch) -> str:
        """What is not finite, from doing the step once more, and how large its numbers are."""
        self.task.train_mode()  # which the end of an epoch may have left
        for weight in self._weights:
            weight.grad = None
        terms = add_gradients(self.task.loss, batch, self.task.accumulate)
        bad = [f"the loss term {name!r} must be finite, got {term.item()}" for name, term in terms.items()]
        bad = [text for text, term in zip(bad, terms.values(), strict=True) if not term.isfinite()]
        named = {name: p.grad for name, p in self.task.trained.named_parameters() if p.grad is not None}
        gradients = [name for name, gradient in named.items() if not gradient.isfinite().all()]
        if gradients and not bad:
            bad = [f"the gradient of {gradients[0]} must be finite, found {statistics(named[gradients[0]])}"]
        largest = max((float(weight.detach().abs().max()) for weight in self._weights if weight.numel()), default=0.0)
        return (
            f"{bad[0] if bad else 'loss and gradients must be finite, were not, and are with the weights of now'} "
            f"({len(gradients)} of {len(named)} gradients are not finite, the largest weight is {largest:.3g}, "
            f"images are {statistics(batch.images)})"
        )


def statistics(tensor: Tensor) -> str:
    """Range and mean magnitude of the finite elements, and how many are not finite."""
    values = tensor.detach().double().flatten()
    finite = values[values.isfinite()]
    lost = len(values) - len(finite)
    spread = f"{finite.min():.3g} … {finite.max():.3g}, {finite.abs().mean():.3g} on average" if len(finite) else "none"
    return f"{spread}, {lost} of {len(values)} not finite" if lost else spread


def save_repro(folder: RunFolder, task: Fit, batch: Batch) -> Path:
    """``nonfinite-<stage>-<step>.safetensors``: a batch, the weights it met, and the run's configuration."""
    tensors = {f"model.{name}": value for name, value in task.model.state_dict().items()}
    if task.method is not None:
        tensors |= {f"method.{name}": value for name, value in task.method.state_dict().items()}
    for name, seen in (("batch", batch), ("unlabeled", batch.unlabeled)):
        if seen is not None:
            tensors |= {f"{name}.{key}": getattr(seen, key) for key in ("images", "labels", "sample_ids")}
    position = {"step": batch.step, "seed": batch.seed, "progress": batch.progress}
    meta = {"schema": SCHEMA, "stage": task.stage, "model": task.meta, "batch": position}
    file = folder.path / f"nonfinite-{task.stage}-{batch.step + 1}.safetensors"
    # Cloned, because safetensors refuses tensors that share memory.
    cloned = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    config = folder.config_file.read_text() if folder.config_file.is_file() else "{}"
    write_atomic(file, save_tensors(cloned, {"meta": json.dumps(meta), "config": config}))
    return file
