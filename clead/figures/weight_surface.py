"""The loss around the weights (ASCL's fig. 5)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from clead.figures.files import write_figure
from clead.figures.surfaces import surfaces


def figure(run: Path) -> Figure:
    """Draw the surface of each model of ``run`` along two random directions, normalised filter by filter."""
    words = "1 is a step as long as the weights, filter by filter"
    labels = ("along a random direction", "along another")
    return surfaces(run, "weight_surface", "Loss around the weights", words, labels, lambda value: f"{value:g}")


def draw(run: Path) -> Path:
    """Write ``run/figures/weight_surface.png``; returns its path."""
    return write_figure(figure(run), run, "weight_surface")
