"""Loss against optimiser step: one panel per stage, the comparison models beside the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from clead.figures.files import MissingFile, comparisons, read_data, read_method, read_metrics, write_figure
from clead.figures.style import (
    COLOURS,
    INK,
    STAGE_NAMES,
    TEXT,
    legend_below,
    model_name,
    new_figure,
    panels,
    plain_axes,
    subtitle,
)

NO_LOSS = {"stage", "epoch", "step", "loss", "lr", "images_per_s", "seconds", "time"}
TERM_STYLES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 3)))
PANEL = 3.4  # inches
LONG = 80  # points from which on a curve is smoothed
LOG_RATIO = 30.0

Curves = dict[str, dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]]


def curves(metrics: list[dict[str, Any]]) -> Curves:
    """Steps and values by stage and loss term (``loss`` first). A step logged twice (a resumed run) counts once."""
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in metrics:
        stages.setdefault(entry["stage"], {})[entry["step"]] = entry
    found: Curves = {}
    for stage, entries in stages.items():
        ordered = [entries[step] for step in sorted(entries)]
        steps = np.array([entry["step"] for entry in ordered])
        keys = dict.fromkeys(key for entry in ordered for key, value in entry.items() if is_loss(key, value))
        terms = {key: np.array([as_float(entry.get(key)) for entry in ordered]) for key in ("loss", *keys)}
        # A stage without a single loss (attacks) has no curve.
        if np.isfinite(terms["loss"]).any():
            found[stage] = {key: (steps, values) for key, values in terms.items() if np.isfinite(values).any()}
    return found


def is_loss(key: str, value: object) -> bool:
    """Whether a key of a metrics line is a further loss term."""
    return key not in NO_LOSS and not key.endswith(("acc", "accuracy")) and isinstance(value, float)


def as_float(value: object) -> float:
    """The number, or NaN (a gap in the curve) for anything else."""
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else float("nan")


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over a thirtieth of the points, narrower at the ends; gaps are left out."""
    half = len(values) // 60
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array([window[np.isfinite(window)].mean() if np.isfinite(window).any() else np.nan for window in windows])


def figure(run: Path) -> Figure:
    """Draw the loss curves of ``run``."""
    method = read_method(run)
    models = {"trained": curves(read_metrics(run))}
    models |= {model: curves(read_metrics(folder)) for model, folder in comparisons(run).items()}
    stages = list(dict.fromkeys(stage for found in models.values() for stage in found))
    if not stages:
        raise MissingFile(f"{run / 'metrics.jsonl'}: expected at least one line with a loss, found none")
    words = subtitle(read_data(run), "each model's own training objective", run.name)
    drawn = new_figure(PANEL * len(stages), "Training loss", words)
    for axes, stage in zip(panels(drawn, len(stages), columns=1), stages, strict=True):
        draw_stage(axes, stage, {model: found[stage] for model, found in models.items() if stage in found}, method)
    return drawn


def draw_stage(
    axes: Axes, stage: str, models: dict[str, dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]], method: str
) -> None:
    """Draw one panel: the loss of each model as a line, the terms it consists of as thinner, broken lines."""
    plain_axes(axes)
    for model, terms in models.items():
        name, colour = model_name(model, method), COLOURS.get(model, INK)
        steps, loss = terms["loss"]
        if len(loss) >= LONG:
            axes.plot(steps, loss, color=colour, alpha=0.25, linewidth=0.8, label="_measured")
            loss = smooth(loss)
        marker = "o" if len(loss) == 1 else ""
        axes.plot(steps, loss, color=colour, linewidth=2, marker=marker, label=name)
        for index, (term, (_, values)) in enumerate((term, of) for term, of in terms.items() if term != "loss"):
            shown = smooth(values) if len(values) >= LONG else values
            style = TERM_STYLES[index % len(TERM_STYLES)]
            axes.plot(steps, shown, color=colour, linewidth=1.2, linestyle=style, label=f"{name}: {term}")
    scale(axes)
    axes.set_title(STAGE_NAMES.get(stage, stage.replace("_", " ")), size=TEXT, color=INK, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("optimiser step", color=INK, size=TEXT)
    axes.set_ylabel("loss", color=INK, size=TEXT)
    legend_below(axes)


def scale(axes: Axes) -> None:
    """Fit the loss axis to the curves (not to the spikes of what they smooth); logarithmic over a wide range."""
    lines = [line for line in axes.get_lines() if line.get_label() != "_measured"]
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in lines])
    low, high = np.nanmin(values), np.nanmax(values)
    if low > 0 and high / low > LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(low / 2, high * 2)
    else:
        margin = 0.08 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


def draw(run: Path) -> Path:
    """Write ``run/figures/loss_curves.png``; returns its path."""
    return write_figure(figure(run), run, "loss_curves")
