"""Warnings about trainings that go wrong while all numbers stay finite; each is given once a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from clead.engine.loop import Fit

COLLAPSED = 0.02
FALLEN = 0.03
FOOLED = 0.1


class Watch:
    """Looks at embeddings on steps that are logged, and at the validation accuracy where it is measured anyway.

    Args:
        task: what is trained; the embeddings are those of its model's projector, if it has one.
        note: prints a line.
    """

    def __init__(self, task: Fit, note: Callable[[str], None]) -> None:
        self._task = task
        self._note = note
        self._said: set[str] = set()
        self._embeddings: Tensor | None = None
        self._armed = False
        self._hooks: list[RemovableHandle] = []

        def keep(_: nn.Module, __: object, output: object) -> None:
            if self._armed and isinstance(output, Tensor):
                self._embeddings = output.detach()

        heads = getattr(task.model, "heads", {})
        if task.stage == "pretrain" and "projector" in heads:
            # A function, not a method: a method would take this object along when a method copies its model.
            self._hooks.append(heads["projector"].register_forward_hook(keep))

    def close(self) -> None:
        """Look no longer."""
        self._armed = False
        for hook in self._hooks:
            hook.remove()

    def arm(self, on: bool) -> None:
        """Whether to look at the step that begins."""
        self._armed, self._embeddings = on, None

    def spread(self, step: int) -> dict[str, float]:
        """``embedding_spread`` of the last embeddings of the step; a warning where they are all the same.

        The standard deviation of a coordinate of the unit-norm embeddings, times the root of their width: 0 where all
        images have one embedding, 1 where embeddings fill the sphere evenly.
        """
        if self._embeddings is None or len(self._embeddings) < 2:
            return {}
        z = F.normalize(self._embeddings.flatten(1).float())
        value = float(z.std(0).square().mean().sqrt() * z.shape[1] ** 0.5)
        if value < COLLAPSED:
            self._warn(
                "collapse", f"step {step + 1}: all images get nearly the same embedding (spread {value:.2g} of 1)"
            )
        return {"embedding_spread": value}

    def one_step(self, step: int, numbers: dict[str, float]) -> None:
        """A warning where a one-step attack is resisted at its end and not half way to it."""
        end, half = numbers.get("adv_accuracy", 0.0), numbers.get("halfway_accuracy", 1.0)
        if half < end - FOOLED:
            said = f"accuracy is {end:.1%} on attacked images, but {half:.1%} half way to them"
            self._warn("one step", f"step {step + 1}: {said}: catastrophic overfitting, see PGD's accuracy")

    def overfitting(self, epoch: int, score: float, best_epoch: int, best: float) -> None:
        """A warning where the held-out accuracy, under the attack of training if there is one, has fallen."""
        if score < best - FALLEN:
            said = f"epoch {epoch}: held-out accuracy is {score:.1%}, down from {best:.1%} after epoch {best_epoch}"
            self._warn("overfitting", f"{said}; the weights of that epoch are kept")

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._note(f"warning: {self._task.stage}, {text}")
