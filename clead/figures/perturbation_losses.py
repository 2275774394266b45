"""Contrastive loss and downstream cross-entropy under adversarial and under random perturbations (CLAE's fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clead.figures.data import Shape, read_pictures
from clead.figures.files import write_figure
from clead.figures.style import COLOURS, INK, TEXT, format_eps, legend_below, new_figure, panels, plain_axes, subtitle

LOSSES = {"contrastive": "contrastive loss", "cross_entropy": "cross-entropy"}
KINDS = {"adversarial": ("-", "o"), "random": ((0, (4, 2)), "s")}
SHAPES: Mapping[str, Shape] = {"eps": ("E",)} | {f"{kind}_{of}": ("E",) for kind in KINDS for of in LOSSES}


def figure(run: Path) -> Figure:
    """Draw both losses against eps, for each model of ``run``."""
    pictures = read_pictures(run, "perturbation_losses", SHAPES)
    facts = next(iter(pictures.values())).facts
    words = f"one step up the contrastive loss (batches of {facts.get('batch', '?')}) against random signs"
    title = "Adversarial against random perturbations"
    drawn = new_figure(6.2, title, subtitle(facts["data"], words, run.name))
    for axes, (loss, label) in zip(panels(drawn, len(LOSSES), columns=1), LOSSES.items(), strict=True):
        plain_axes(axes)
        for model, picture in pictures.items():
            colour = COLOURS.get(picture.facts["model"], INK)
            for kind, (style, marker) in KINDS.items():
                values = picture.arrays[f"{kind}_{loss}"]
                name = f"{model}, {kind}"
                axes.plot(picture.arrays["eps"], values, color=colour, linestyle=style, marker=marker, ms=5, label=name)
        axes.set_ylabel(label, size=TEXT, color=INK)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda eps, _: format_eps(eps))
    axes.set_xlabel("eps, pixels in [0, 1]", size=TEXT, color=INK)
    legend_below(axes)
    return drawn


def draw(run: Path) -> Path:
    """Write ``run/figures/perturbation_losses.png``; returns its path."""
    return write_figure(figure(run), run, "perturbation_losses")
