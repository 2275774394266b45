"""Mean distances between and within classes, and their ratio (the heat maps of adaptive FNC's fig. 2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clead.errors import UserError
from clead.figures.data import Picture, read_pictures
from clead.figures.files import write_figure
from clead.figures.style import INK, SMALL, TEXT, new_figure, panels, subtitle

ENCODINGS = ("features", "embeddings")
NAMED = 10  # classes at most that have their names on the axes


def figure(run: Path) -> Figure:
    """Draw one matrix per model of ``run`` and encoding; dark along the diagonal is a class that keeps together."""
    pictures = read_pictures(run, "class_distances", {"features": ("K", "K")}, {"embeddings": ("K", "K")})
    maps = [
        (f"{name}, {of}\n{ratio(picture, of)}", picture.arrays[of], picture.classes)
        for name, picture in pictures.items()
        for of in ENCODINGS
        if of in picture.arrays
    ]
    first = next(iter(pictures.values()))
    words = "mean Euclidean distance of unit vectors; inter / intra: between classes over within one"
    title = "Distances between classes"
    drawn = new_figure(0.3 + 2.9 * -(-len(maps) // 2), title, subtitle(first.facts["data"], words, run.name))
    known = np.concatenate([values[np.isfinite(values)] for _, values, _ in maps])
    all_axes = panels(drawn, len(maps))
    for axes, (title, values, classes) in zip(all_axes, maps, strict=True):
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=known.max(initial=1e-6))
        axes.set_title(title, size=TEXT, color=INK, parse_math=False)
        named = range(len(classes)) if len(classes) <= NAMED else []
        axes.set_yticks(named, [classes[of] for of in named], size=SMALL)
        turned = 90 if max(map(len, classes), default=0) > 2 else 0
        axes.set_xticks(named, [classes[of] for of in named], size=SMALL, rotation=turned)
        axes.tick_params(length=0, colors=INK)
    drawn.colorbar(image, ax=all_axes, location="bottom", shrink=0.6, aspect=30).ax.tick_params(labelsize=SMALL)
    return drawn


def ratio(picture: Picture, encoding: str) -> str:
    """``inter / intra 1.98``, of the facts of the file."""
    try:
        return f"inter / intra {float(picture.facts[f'ratio_{encoding}']):.2f}"
    except (KeyError, ValueError) as error:
        raise UserError(f"{picture.path}: expected the number ratio_{encoding} in its metadata, found none") from error


def draw(run: Path) -> Path:
    """Write ``run/figures/class_distances.png``; returns its path."""
    return write_figure(figure(run), run, "class_distances")
