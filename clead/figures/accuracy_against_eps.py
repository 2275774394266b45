"""Accuracy under PGD against its radius, with the clean accuracy at radius 0."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from clead.figures.files import MissingFile, read_method, read_results, write_figure
from clead.figures.style import (
    COLOURS,
    INK,
    attack_name,
    data_name,
    format_eps,
    model_name,
    new_figure,
    plain_axes,
)

STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
Row = dict[str, Any]


def figure(run: Path) -> Figure:
    """Draw accuracy against eps for each model of ``run``."""
    rows = [row for row in read_results(run) if row.get("accuracy") is not None and not row.get("corruption")]
    attack = choose_attack(rows)
    if attack is None:
        raise MissingFile(f"{run / 'results.json'}: expected rows of pgd20, found none")
    lines = group(rows, attack)
    shown = [row for line in lines.values() for row in line]
    title = f"Accuracy under {attack_name(attack)} against its radius"
    subtitle = " · ".join(word for word in (data_name(shown), "band: 95% Wilson interval", run.name) if word)
    drawn = new_figure(4.4, title, subtitle)
    axes = drawn.add_subplot()
    plain_axes(axes)
    method = read_method(run)
    for key, line in lines.items():
        twins = [other for other in lines if other[0] == key[0]]
        # Only what tells the lines of one model apart is worth a word.
        apart = [word or "-" for word, *others in zip(key, *twins, strict=True) if len(set(others)) > 1]
        name = ", ".join([model_name(key[0], method), *apart])
        draw_line(axes, line, name, COLOURS.get(key[0], INK), STYLES[twins.index(key) % len(STYLES)])
    label_axes(axes, shown, attack)
    return drawn


def choose_attack(rows: list[Row]) -> str | None:
    """``pgd20`` where there is one, else the linf PGD measured at the most radii."""
    radii: dict[str, set[float]] = {}
    for row in rows:
        if row["name"].startswith("pgd") and row.get("norm") in ("linf", None):
            radii.setdefault(row["name"], set()).add(row.get("eps") or 0.0)
    return "pgd20" if "pgd20" in radii else max(radii, key=lambda name: len(radii[name]), default=None)


def group(rows: list[Row], attack: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows of ``attack`` and clean rows by model and what else they were measured with, in order of eps."""
    lines: dict[tuple[str, ...], dict[float, Row]] = {}
    for row in rows:
        attacked = row["name"] == attack and row.get("norm") in ("linf", None)
        if attacked or row["name"] == "clean":
            key = tuple(str(row.get(name) or "") for name in ("model", "protocol", "bn_branch", "dataset", "split"))
            line = lines.setdefault(key, {})
            eps = 0.0 if row["name"] == "clean" else row.get("eps") or 0.0
            at = round(eps, 7)
            # Of two rows (restarts, or the table's radius within the sweep) the stronger attack counts.
            if at not in line or row["accuracy"] < line[at]["accuracy"]:
                line[at] = row | {"eps": eps}
    ordered = {key: [line[at] for at in sorted(line)] for key, line in lines.items()}
    return {key: line for key, line in ordered.items() if any(row["name"] == attack for row in line)}


def draw_line(axes: Axes, line: list[Row], name: str, colour: str, style: Any) -> None:
    """Draw one model: a line through its measurements and the band of their intervals."""
    eps = [row["eps"] for row in line]
    accuracy = [row["accuracy"] for row in line]
    # Not clipped: the clean accuracy sits on the edge.
    axes.plot(eps, accuracy, "o", color=colour, linestyle=style, linewidth=2, ms=5, clip_on=False, zorder=3, label=name)
    known = [row for row in line if row.get("low") is not None and row.get("high") is not None]
    if known:
        low, high = [row["low"] for row in known], [row["high"] for row in known]
        axes.fill_between([row["eps"] for row in known], low, high, color=colour, alpha=0.15, linewidth=0)


def label_axes(axes: Axes, rows: list[Row], attack: str) -> None:
    """Percent on one axis, radii (as k/255 where they all are) on the other."""
    axes.set_ylim(-0.01, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("accuracy", color=INK)
    radii = sorted({round(row["eps"], 7): row["eps"] for row in rows}.values())
    apart = min((high - low for low, high in pairwise(radii)), default=1.0)
    if apart > 0.07 * radii[-1]:  # the labels of all measured radii find room
        axes.set_xticks(radii)
    axes.xaxis.set_major_formatter(lambda eps, _: "0 (clean)" if abs(eps) < 1e-9 else format_eps(eps))
    axes.set_xlim(0, 1.02 * radii[-1] or 1.0)
    axes.set_xlabel(f"eps: radius of {attack_name(attack)} (linf), pixels in [0, 1]", color=INK)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK)


def draw(run: Path) -> Path:
    """Write ``run/figures/accuracy_against_eps.png``; returns its path."""
    return write_figure(figure(run), run, "accuracy_against_eps")
