"""What the figures of accuracies share: lines with the band of their intervals, an axis in percent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from clead.figures.style import INK, TEXT, legend_below, model_name

STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
WHERE = ("model", "protocol", "bn_branch", "dataset", "split")
Row = dict[str, Any]


def measured_where(row: Row) -> tuple[str, ...]:
    """What tells lines of one attack apart: the model, and what else it was measured with."""
    return tuple(str(row.get(name) or "") for name in WHERE)


def line_name(where: tuple[str, ...], others: Iterable[tuple[str, ...]], method: str) -> str:
    """What people call a model, and what tells this line of it from its other lines."""
    twins = [other for other in others if other[0] == where[0]]
    apart = [word or "-" for word, *of in zip(where, *twins, strict=True) if len(set(of)) > 1]
    return ", ".join([model_name(where[0], method), *apart])


def by_number(rows: list[Row], name: str) -> list[Row]:
    """One row per value of the number ``name``, in its order: a line of the figure.

    Only rows over the most images count, as a try on a few would bend the curve over all; of two with the same value
    (restarts, or the table's radius within the sweep) the stronger attack does.
    """
    most = max(row.get("samples") or 0 for row in rows)
    line: dict[float, Row] = {}
    for row in rows:
        at = round(row[name], 7)
        if (row.get("samples") or 0) == most and (at not in line or row["accuracy"] < line[at]["accuracy"]):
            line[at] = row
    return [line[at] for at in sorted(line)]


def draw_line(axes: Axes, x: list[float], line: list[Row], name: str, colour: str, style: Any) -> None:
    """A line through the accuracies at ``x``, and the band of their intervals where they have any."""
    accuracy = [row["accuracy"] for row in line]
    # Not clipped: the clean accuracy sits on the edge.
    axes.plot(x, accuracy, "o", color=colour, linestyle=style, linewidth=2, ms=5, clip_on=False, zorder=3, label=name)
    known = [(at, row) for at, row in zip(x, line, strict=True) if None not in (row.get("low"), row.get("high"))]
    if known:
        low, high = ([row[end] for _, row in known] for end in ("low", "high"))
        axes.fill_between([at for at, _ in known], low, high, color=colour, alpha=0.15, linewidth=0)


def percent_axis(axes: Axes) -> None:
    """Accuracy in percent on the vertical axis, from 0 to 100, and a legend below."""
    axes.set_ylim(-0.01, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("accuracy", color=INK, size=TEXT)
    legend_below(axes)
