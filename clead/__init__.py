"""Adversarial contrastive learning end to end. ``clead.load(run)`` returns a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clead.models import Model

__version__ = "0.1.0"


def load(run: str | Path, *, stage: str | None = None) -> Model:
    """The model of a run folder, in eval mode on the CPU; see ``clead.loading.load``."""
    from clead import loading  # imported here so that `import clead` stays light

    return loading.load(run, stage=stage)
