"""Loss surfaces as maps with contour lines, of several models on one scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clead.errors import UserError
from clead.figures.data import Picture, Shape, read_pictures
from clead.figures.style import INK, SMALL, TEXT, new_figure, panels, subtitle

SHAPES: dict[str, Shape] = {"loss": ("G", "G"), "axis": ("G",)}
LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LEAST = 1e-3  # what a smaller loss is drawn as


def surfaces(
    run: Path, name: str, title: str, words: str, labels: tuple[str, str], tick: Callable[[float], str]
) -> Figure:
    """One map per model of ``run``.

    Args:
        run: the run folder.
        name: the figure's.
        title: over the figure.
        words: below the title.
        labels: of the horizontal and of the vertical axis.
        tick: what to write at a value of the axes.
    """
    pictures = read_pictures(run, name, SHAPES)
    first = next(iter(pictures.values()))
    images = f"mean cross-entropy of {first.facts.get('images', '?')} images"
    words = subtitle(first.facts["data"], images, words, run.name)
    drawn = new_figure(0.7 + 2.9 * -(-len(pictures) // 2), title, words)
    all_axes = panels(drawn, len(pictures))
    losses = {of: np.maximum(loss_of(picture), LEAST) for of, picture in pictures.items()}
    norm = LogNorm(min(loss.min() for loss in losses.values()), max(loss.max() for loss in losses.values()) * 1.001)
    for axes, (model, loss) in zip(all_axes, losses.items(), strict=True):
        axis = pictures[model].arrays["axis"]
        image = axes.pcolormesh(axis, axis, loss, cmap="cividis", norm=norm, shading="gouraud", rasterized=True)
        levels = [level for level in LEVELS if loss.min() < level < loss.max()]
        if levels:
            lines = axes.contour(axis, axis, loss, levels=levels, colors="white", linewidths=0.8)
            axes.clabel(lines, fmt=lambda level: f"{level:g}", fontsize=SMALL)
        axes.set_title(model, size=TEXT, color=INK)
        ends = [axis[0], 0.0, axis[-1]]
        axes.set_xticks(ends, [tick(float(end)) for end in ends], size=SMALL)
        axes.set_yticks(ends, [tick(float(end)) for end in ends], size=SMALL)
        axes.set_box_aspect(1)
    drawn.supxlabel(labels[0], size=SMALL, color=INK)
    drawn.supylabel(labels[1], size=SMALL, color=INK)
    bar = drawn.colorbar(image, ax=all_axes, location="bottom", shrink=0.6, aspect=30, label="loss")
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.ax.tick_params(labelsize=SMALL)
    return drawn


def loss_of(picture: Picture) -> NDArray[np.float32]:
    """The surface, without gaps, on an axis that grows."""
    loss: NDArray[np.float32] = picture.arrays["loss"]
    if np.isnan(loss).any():
        raise UserError(f"{picture.path}: expected losses without NaN")
    if len(loss) < 2 or not (np.diff(picture.arrays["axis"]) > 0).all():
        raise UserError(f"{picture.path}: expected an axis of two points or more that grows")
    return loss
