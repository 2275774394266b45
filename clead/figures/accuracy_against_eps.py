"""Accuracy under PGD against its radius, with the clean accuracy at radius 0 (the right half of ASCL's fig. 6)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clead.figures.accuracy import STYLES, Row, by_number, draw_line, line_name, measured_where, percent_axis
from clead.figures.files import MissingFile, read_method, read_results, write_figure
from clead.figures.style import (
    COLOURS,
    INK,
    TEXT,
    attack_name,
    data_name,
    format_eps,
    new_figure,
    plain_axes,
    subtitle,
)


def figure(run: Path) -> Figure:
    """Draw accuracy against eps for each model of ``run``."""
    rows = [row for row in read_results(run) if row.get("accuracy") is not None and not row.get("corruption")]
    attack = choose_attack(rows)
    if attack is None:
        raise MissingFile(f"{run / 'results.json'}: expected rows of pgd20, found none")
    lines = group(rows, attack)
    shown = [row for line in lines.values() for row in line]
    title = f"Accuracy under {attack_name(attack)} against its radius"
    drawn = new_figure(4.2, title, subtitle(data_name(shown), "band: 95% Wilson interval", run.name))
    axes = drawn.add_subplot()
    plain_axes(axes)
    method = read_method(run)
    for key, line in lines.items():
        name = line_name(key, lines, method)
        twins = [other for other in lines if other[0] == key[0]]
        style = STYLES[twins.index(key) % len(STYLES)]
        draw_line(axes, [row["eps"] for row in line], line, name, COLOURS.get(key[0], INK), style)
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
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        attacked = row["name"] == attack and row.get("norm") in ("linf", None)
        if attacked or row["name"] == "clean":
            eps = 0.0 if row["name"] == "clean" else row.get("eps") or 0.0
            lines.setdefault(measured_where(row), []).append(row | {"eps": eps})
    ordered = {key: by_number(line, "eps") for key, line in lines.items()}
    return {key: line for key, line in ordered.items() if any(row["name"] == attack for row in line)}


def label_axes(axes: Axes, rows: list[Row], attack: str) -> None:
    """Percent on one axis, radii (as k/255 where they all are) on the other."""
    percent_axis(axes)
    radii = sorted({round(row["eps"], 7): row["eps"] for row in rows}.values())
    apart = min((high - low for low, high in pairwise(radii)), default=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if apart > 0.12 * radii[-1]:  # the labels of all measured radii find room
        axes.set_xticks(radii)
    axes.xaxis.set_major_formatter(lambda eps, _: "clean" if abs(eps) < 1e-9 else format_eps(eps))
    axes.set_xlim(0, 1.02 * radii[-1] or 1.0)
    axes.set_xlabel(f"eps: radius of {attack_name(attack)} (linf), pixels in [0, 1]", color=INK, size=TEXT)


def draw(run: Path) -> Path:
    """Write ``run/figures/accuracy_against_eps.png``; returns its path."""
    return write_figure(figure(run), run, "accuracy_against_eps")
