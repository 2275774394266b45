"""The content of the results table: rows of results.json sorted into lines (models) and columns (attacks)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clead.figures.files import COMPARISONS
from clead.figures.style import data_name, format_eps, model_name

Row = dict[str, Any]
MODELS = ("trained", *COMPARISONS)


@dataclass(frozen=True)
class Column:
    """What one column of the table measures."""

    name: str
    attack: str
    norm: str
    eps: float | None
    corruption: str
    severity: int

    @property
    def radius(self) -> str:
        """The radius, with its norm unless that is linf; ``""`` for clean images."""
        if self.eps is None:
            return f"severity {self.severity}" if self.severity else ""
        return format_eps(self.eps) if self.norm in ("", "linf") else f"{self.norm} {format_eps(self.eps)}"

    @property
    def title(self) -> str:
        """Name and radius in one line."""
        return f"{self.name} {self.radius}".strip()


@dataclass(frozen=True)
class Line:
    """Whose accuracies one line of the table holds."""

    run: str
    model: str
    protocol: str
    bn_branch: str
    dataset: str
    split: str


@dataclass(frozen=True)
class Grid:
    """The content of the table, before it is laid out.

    Attributes:
        columns: in the order shown.
        lines: each with what people call it.
        cells: the row of results.json behind each cell.
        footer: one sentence a line.
    """

    columns: list[Column]
    lines: dict[Line, str]
    cells: dict[tuple[Line, Column], Row]
    footer: list[str]

    def best(self, line: Line, column: Column) -> bool:
        """Whether a cell holds the best accuracy of its column among lines on the same data (of two or more)."""
        rivals = [other for other in self.lines if (other.dataset, other.split) == (line.dataset, line.split)]
        values = [self.cells[other, column]["accuracy"] for other in rivals if (other, column) in self.cells]
        cell = self.cells.get((line, column))
        return cell is not None and len(values) > 1 and cell["accuracy"] == max(values)

    def text(self, line: Line, column: Column) -> str:
        """A cell in percent, ``-`` where nothing was measured."""
        cell = self.cells.get((line, column))
        return "-" if cell is None else f"{100 * cell['accuracy']:.1f}"


def arrange(rows: Sequence[Row]) -> Grid:
    """Sort the rows of results.json into lines and columns.

    Rows flagged ``sweep`` are for the figure only. An attack that a run has not measured on all of its models is named
    in the footer instead of having a column.
    """
    cells: dict[tuple[Line, Column], Row] = {}
    repeated = False
    for row in rows:
        if row.get("accuracy") is None or "sweep" in (row.get("flags") or ()):
            continue
        key = (line_of(row), column_of(row))
        repeated = repeated or key in cells
        if key not in cells or row["accuracy"] < cells[key]["accuracy"]:
            cells[key] = row
    lines = sorted(dict.fromkeys(line for line, _ in cells), key=lambda line: model_rank(line.model))
    runs = list(dict.fromkeys(line.run for line, _ in cells))
    lines.sort(key=lambda line: runs.index(line.run))
    everywhere = [column for column in ordered_columns(cells) if is_complete(column, cells)]
    somewhere = [column for column in ordered_columns(cells) if column not in everywhere]
    grid = Grid(everywhere, {line: line_name(line, lines, cells) for line in lines}, cells, [])
    return replace(grid, footer=footer_of(grid, somewhere, repeated))


def is_plain(row: Row) -> bool:
    """Neither of corrupted images nor of transfer, which are too many for columns and have tables of their own."""
    return not row.get("corruption") and not str(row.get("attack")).startswith("transfer:")


def line_of(row: Row) -> Line:
    """The line a row belongs to."""
    names = ("run", "model", "protocol", "bn_branch", "dataset", "split")
    return Line(*(str(row.get(name) or "") for name in names))


def column_of(row: Row) -> Column:
    """The column a row belongs to."""
    eps = row.get("eps")
    name, attack, norm, corruption = (str(row.get(key) or "") for key in ("name", "attack", "norm", "corruption"))
    return Column(name, attack, norm, None if eps is None else round(eps, 7), corruption, int(row.get("severity") or 0))


def ordered_columns(cells: dict[tuple[Line, Column], Row]) -> list[Column]:
    """Clean first, then attack by attack in the order of the file, each by growing radius."""
    columns = list(dict.fromkeys(column for _, column in cells))
    names = list(dict.fromkeys(column.name for column in columns))

    def rank(column: Column) -> tuple[bool, int, float, int]:
        return column.name != "clean", names.index(column.name), column.eps or 0.0, column.severity

    return sorted(columns, key=rank)


def is_complete(column: Column, cells: dict[tuple[Line, Column], Row]) -> bool:
    """Whether each run that measured ``column`` did so on all of its models."""
    for run in {line.run for line, of in cells if of == column}:
        models = {line.model for line, _ in cells if line.run == run}
        if models != {line.model for line, of in cells if line.run == run and of == column}:
            return False
    return True


def model_rank(model: str) -> int:
    """The trained model first, then the comparisons."""
    return MODELS.index(model) if model in MODELS else len(MODELS)


def line_name(line: Line, lines: list[Line], cells: dict[tuple[Line, Column], Row]) -> str:
    """What people call a line: its model, and what tells it from other lines of that model."""
    row = next(row for (of, _), row in cells.items() if of == line)
    name = model_name(line.model, str(row.get("method") or "trained"))
    twins = [other for other in lines if (other.run, other.model) == (line.run, line.model)]
    for field in ("protocol", "bn_branch", "dataset", "split"):
        if len({getattr(other, field) for other in twins}) > 1:
            name += f", {getattr(line, field) or 'no ' + field}"
    return name


def footer_of(grid: Grid, somewhere: list[Column], repeated: bool) -> list[str]:
    """Samples, interval, and what the table leaves out."""
    shown = [row for (_, column), row in grid.cells.items() if column in grid.columns]
    halves = [(row["high"] - row["low"]) / 2 for row in shown if None not in (row.get("low"), row.get("high"))]
    words = ["accuracy in %", data_name(shown)]
    if halves:
        words.append(f"95% intervals: +/- {100 * max(halves):.1f} at most (Wilson)")
    footer = ["; ".join(word for word in words if word)]
    if repeated:
        footer.append("Of rows that differ in seed, step size, restarts or dtype only, the lowest is shown.")
    if any("selected_on_test" in (row.get("flags") or ()) for row in shown):
        footer.append("Epochs were chosen on the test split, as the official code does: these numbers flatter.")
    for column in somewhere:
        has = [f"{name} {grid.text(line, column)}" for line, name in grid.lines.items() if (line, column) in grid.cells]
        footer.append(f"Not measured on every model: {column.title}: {', '.join(has)}")
    return footer
