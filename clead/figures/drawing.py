"""Every figure there is, and drawing those that a run has the data of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clead.figures import (
    accuracy_against_eps,
    accuracy_against_steps,
    batch_norm,
    class_distances,
    corruptions,
    feature_inversion,
    image_grid,
    input_surface,
    loss_curves,
    perturbation_losses,
    tsne,
    weight_surface,
)
from clead.figures.files import MissingFile

FIGURES: dict[str, Callable[[Path], Path]] = {
    "loss_curves": loss_curves.draw,
    "accuracy_against_eps": accuracy_against_eps.draw,
    "accuracy_against_steps": accuracy_against_steps.draw,
    "corruptions": corruptions.draw,
    "image_grid": image_grid.draw,
    "perturbation_losses": perturbation_losses.draw,
    "tsne": tsne.draw,
    "class_distances": class_distances.draw,
    "feature_inversion": feature_inversion.draw,
    "input_surface": input_surface.draw,
    "weight_surface": weight_surface.draw,
    "batch_norm": batch_norm.draw,
}
USUAL = ("loss_curves", "accuracy_against_eps", "image_grid")  # what a training leaves the data for


def draw_all(run: Path, on_missing: Callable[[str], object] | None = None) -> list[Path]:
    """Draw every figure that the files of ``run`` allow.

    Args:
        run: the run folder.
        on_missing: called with one sentence for each of the usual figures that an unfinished run has no data for.

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
            if on_missing is not None and name in USUAL:
                on_missing(f"{name} not drawn: {error}")
    return drawn
