"""Test images in feature space, in two dimensions by t-SNE, by class (ASCL's fig. 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from clead.errors import UserError
from clead.figures.data import Picture, Shape, read_pictures
from clead.figures.files import write_figure
from clead.figures.style import CLASS_COLOURS, CLASS_MARKERS, INK, TEXT, new_figure, panels, subtitle

SHAPES: dict[str, Shape] = {"points": ("N", 2), "labels": ("N",)}
NAMED = 20  # classes at most that have their names in the figure


def figure(run: Path) -> Figure:
    """Draw the map of each model of ``run``; only who is near whom has a meaning, not the axes."""
    pictures = read_pictures(run, "tsne", SHAPES)
    first = next(iter(pictures.values()))
    words = f"{len(first.arrays['labels'])} images, perplexity {first.facts.get('perplexity')}"
    room = 0.2 + 3.0 * -(-len(pictures) // 2)
    drawn = new_figure(room, "t-SNE of the features, by class", subtitle(first.facts["data"], words, run.name))
    for axes, (name, picture) in zip(panels(drawn, len(pictures)), pictures.items(), strict=True):
        scatter(axes, picture)
        axes.set_title(name, size=TEXT, color=INK)
    return drawn


def scatter(axes: Axes, picture: Picture) -> None:
    """One class after the other in its colour and marker, its name at its median."""
    points, labels = picture.arrays["points"], picture.arrays["labels"]
    if labels.min() < 0 or labels.max() >= len(picture.classes):
        raise UserError(f"{picture.path}: expected labels of {len(picture.classes)} classes, found {labels.max()}")
    for label in np.unique(labels):
        mine = points[labels == label]
        colour, marker = (of[label % len(of)] for of in (CLASS_COLOURS, CLASS_MARKERS))
        axes.scatter(mine[:, 0], mine[:, 1], s=9, color=colour, marker=marker, linewidths=0)
        if len(picture.classes) <= NAMED:
            x, y = np.median(mine, 0)
            words: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "parse_math": False}
            outline = [withStroke(linewidth=3, foreground="white")]
            axes.text(x, y, picture.classes[label], size=TEXT, color=INK, path_effects=outline, **words)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")


def draw(run: Path) -> Path:
    """Write ``run/figures/tsne.png``; returns its path."""
    return write_figure(figure(run), run, "tsne")
