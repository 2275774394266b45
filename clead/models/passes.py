"""Passes through a model as values: what an attack may compile, capture, and run on a view of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from clead.models.batch_norm import Branch


@dataclass(frozen=True)
class Pass:
    """``model.features``, ``model.embed`` or ``model.logits`` through one batch-norm branch.

    Attributes:
        kind: the method of ``Model``.
        branch: name of a batch-norm branch, or segments.
    """

    kind: Literal["features", "embed", "logits"]
    branch: Branch

    def __call__(self, model: Any, x: Tensor) -> Tensor:
        """[B, K] of images [B, C, H, W] in [0, 1]; ``model`` is anything that has the method."""
        encoding: Tensor = getattr(model, self.kind)(x, branch=self.branch)
        return encoding

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of the branches it goes through, each once."""
        if isinstance(self.branch, str):
            return (self.branch,)
        return tuple(dict.fromkeys(name for name, _ in self.branch))
