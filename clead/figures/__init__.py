"""Figures of a run, drawn from the files in its folder only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clead.figures import accuracy_against_eps, image_grid, loss_curves
from clead.figures.files import MissingFile

FIGURES: dict[str, Callable[[Path], Path]] = {
    "loss_curves": loss_curves.draw,
    "accuracy_against_eps": accuracy_against_eps.draw,
    "image_grid": image_grid.draw,
}


def draw_all(run: Path, on_missing: Callable[[str], object] | None = None) -> list[Path]:
    """Draw every figure that the files of ``run`` allow.

    Args:
        run: the run folder.
        on_missing: called with one sentence for each figure that an unfinished run has no data for.

    Returns:
        The paths of the figures drawn.

    Raises:
        UserError: a file is malformed.
    """
    drawn = []
    for name, draw in FIGURES.items():
        try:
            drawn.append(draw(run))
        except MissingFile as error:
            if on_missing is not None:
                on_missing(f"{name} not drawn: {error}")
    return drawn


__all__ = ["FIGURES", "MissingFile", "draw_all"]
