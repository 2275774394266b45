"""Accuracy under PGD against its number of steps (the left half of ASCL's fig. 6).

A curve that still falls at its end says that the attack was too short; the step size is the same all along.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from clead.figures.accuracy import STYLES, Row, by_number, draw_line, line_name, measured_where, percent_axis
from clead.figures.files import MissingFile, read_method, read_results, write_figure
from clead.figures.style import COLOURS, INK, TEXT, data_name, format_eps, new_figure, plain_axes, subtitle

LEAST = 3  # numbers of steps that make a line
Key = tuple[tuple[str, ...], float]


def figure(run: Path) -> Figure:
    """Draw accuracy against steps for each model of ``run`` and each radius."""
    lines = group(read_results(run))
    if not lines:
        command = f"python -m clead.evaluate {run} --protocols sweep_steps"
        raise MissingFile(f"{run / 'results.json'}: expected rows of PGD with several numbers of steps; {command}")
    shown = [row for line in lines.values() for row in line]
    title = "Accuracy under PGD against its steps"
    drawn = new_figure(4.5, title, subtitle(data_name(shown), "band: 95% Wilson interval", run.name))
    axes = drawn.add_subplot()
    plain_axes(axes)
    method, radii = read_method(run), sorted({eps for _, eps in lines}, reverse=True)
    for (where, eps), line in lines.items():
        name = f"{line_name(where, [other for other, _ in lines], method)}, eps {format_eps(eps)}"
        style = STYLES[radii.index(eps) % len(STYLES)]
        draw_line(axes, [row["steps"] for row in line], line, name, COLOURS.get(where[0], INK), style)
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = sorted({row["steps"] for row in shown})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xlim(0, ticks[-1])
    axes.set_xlabel("steps of PGD (0: the random start alone)", color=INK, size=TEXT)
    percent_axis(axes)
    return drawn


def group(rows: list[Row]) -> dict[Key, list[Row]]:
    """Rows of linf PGD by what they were measured with and radius, in order of steps; lines of LEAST points or more."""
    lines: dict[Key, list[Row]] = {}
    for row in rows:
        usual = row.get("attack") == "pgd" and row.get("norm") in ("linf", None) and not row.get("corruption")
        if usual and type(row.get("steps")) is int and row.get("eps") and row.get("accuracy") is not None:
            lines.setdefault((measured_where(row), round(row["eps"], 7)), []).append(row)
    ordered = {key: by_number(line, "steps") for key, line in lines.items()}
    return {key: line for key, line in ordered.items() if len(line) >= LEAST}


def draw(run: Path) -> Path:
    """Write ``run/figures/accuracy_against_steps.png``; returns its path."""
    return write_figure(figure(run), run, "accuracy_against_steps")
