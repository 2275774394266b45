"""Batch-norm statistics of clean against adversarial images, channel by channel (CLAE's fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clead.figures.data import Picture, Shape, read_pictures
from clead.figures.files import write_figure
from clead.figures.style import INK, SMALL, TEXT, new_figure, panels, plain_axes, subtitle

STATISTICS = ("mean", "variance")
SHAPES: Mapping[str, Shape] = {"layer": ("M",)} | {
    f"{kind}_{of}": ("M",) for kind in ("clean", "adversarial") for of in STATISTICS
}
LEAST = 1e-6  # what a smaller variance is drawn as


def figure(run: Path) -> Figure:
    """Draw a point per channel: on the diagonal, batch norm does not tell clean from adversarial images."""
    pictures = read_pictures(run, "batch_norm", SHAPES)
    first = next(iter(pictures.values()))
    words = f"{first.facts.get('source', '')}; a point per channel, yellow: in a late layer"
    drawn = new_figure(0.3 + 2.8 * len(pictures), "Batch norm: clean against adversarial", subtitle(words, run.name))
    all_axes = iter(panels(drawn, 2 * len(pictures)))
    for name, picture in pictures.items():
        for statistic in STATISTICS:
            axes = next(all_axes)
            scatter(axes, picture, statistic)
            axes.set_title(f"{name}: {statistic}", size=TEXT, color=INK)
    drawn.supxlabel("clean", size=TEXT, color=INK)
    drawn.supylabel("adversarial", size=TEXT, color=INK)
    return drawn


def scatter(axes: Axes, picture: Picture, statistic: str) -> None:
    """One statistic of all channels, and the diagonal."""
    plain_axes(axes)
    clean, adversarial = (picture.arrays[f"{kind}_{statistic}"] for kind in ("clean", "adversarial"))
    if statistic == "variance":
        clean, adversarial = np.maximum(clean, LEAST), np.maximum(adversarial, LEAST)
        axes.set(xscale="log", yscale="log")
    axes.scatter(clean, adversarial, s=12, c=picture.arrays["layer"], cmap="viridis", linewidths=0)
    ends = [min(clean.min(), adversarial.min()), max(clean.max(), adversarial.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
    axes.tick_params(labelsize=SMALL)
    axes.set_box_aspect(1)


def draw(run: Path) -> Path:
    """Write ``run/figures/batch_norm.png``; returns its path."""
    return write_figure(figure(run), run, "batch_norm")
