"""The loss around test images (ASCL's fig. 4)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from clead.figures.files import write_figure
from clead.figures.style import format_eps
from clead.figures.surfaces import surfaces


def figure(run: Path) -> Figure:
    """Draw the surface of each model of ``run``: up along the sign of the gradient, right along random signs."""
    words = "not clipped to valid images"
    labels = ("along random signs, pixels", "along the sign of the gradient, pixels")
    return surfaces(run, "input_surface", "Loss around the images", words, labels, tick)


def tick(value: float) -> str:
    """A radius with its sign."""
    return "0" if abs(value) < 1e-9 else ("−" if value < 0 else "") + format_eps(abs(value))


def draw(run: Path) -> Path:
    """Write ``run/figures/input_surface.png``; returns its path."""
    return write_figure(figure(run), run, "input_surface")
