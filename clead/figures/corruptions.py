"""Accuracy on corrupted images: one bar per type and model (ASCL's figs. 1 and 7)."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from clead.figures.files import MissingFile, read_method, read_results, write_figure
from clead.figures.style import COLOURS, INK, OUR_GENERATOR, TEXT, model_name, new_figure, plain_axes, subtitle

Bars = dict[str, dict[str, list[float]]]


def figure(run: Path) -> Figure:
    """Draw the accuracies of each model of ``run``: a bar from 0 to the mean over severities, a whisker over all."""
    rows = [row for row in read_results(run) if row.get("corruption") and row.get("accuracy") is not None]
    if not rows:
        command = f"python -m clead.evaluate {run} --protocols corruptions"
        raise MissingFile(f"{run / 'results.json'}: expected rows on corrupted images, found none; {command}")
    official = [row for row in rows if OUR_GENERATOR not in (row.get("flags") or ())]
    rows = official or rows
    bars = group(rows)
    types = ["mean of all", *dict.fromkeys(row["corruption"] for row in rows)]
    severities = sorted({row["severity"] for row in rows if row.get("severity")})
    source = "official files" if official else "our own generator, in the style of CIFAR-10-C"
    words = f"{rows[0].get('dataset') or ''}, severities {', '.join(map(str, severities))}: bar mean, whisker range"
    room = 0.9 + 0.13 * len(types) * (1 + len(bars))
    drawn = new_figure(room, "Accuracy on corrupted images", subtitle(words, source, run.name))
    axes = drawn.add_subplot()
    plain_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    height, method = 0.8 / len(bars), read_method(run)
    for index, (model, of) in enumerate(bars.items()):
        there = [(at + index * height, of[name]) for at, name in enumerate(types) if name in of]
        places, values = [place for place, _ in there], [accuracies for _, accuracies in there]
        colour = COLOURS.get(model, INK)
        axes.barh(places, [mean(of) for of in values], height * 0.9, color=colour, label=model_name(model, method))
        axes.hlines(places, [min(of) for of in values], [max(of) for of in values], color=INK, linewidth=1)
    axes.set_yticks([at + 0.4 - height / 2 for at in range(len(types))], [name.replace("_", " ") for name in types])
    axes.set_ylim(len(types), -0.4)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("accuracy", color=INK, size=TEXT)
    drawn.legend(loc="outside lower center", ncols=len(bars), frameon=False, fontsize=TEXT, labelcolor=INK)
    return drawn


def group(rows: list[dict[str, Any]]) -> Bars:
    """Accuracies over severities by model and type, and over everything as ``mean of all``."""
    bars: Bars = {}
    for row in rows:
        of = bars.setdefault(row["model"], {})
        for name in ("mean of all", row["corruption"]):
            of.setdefault(name, []).append(row["accuracy"])
    return bars


def draw(run: Path) -> Path:
    """Write ``run/figures/corruptions.png``; returns its path."""
    return write_figure(figure(run), run, "corruptions")
