"""``python -m clead.report RUN…``: the results table of one or several runs, and their figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clead.errors import UserError
from clead.figures import MissingFile, draw_all
from clead.figures.files import COMPARISONS, read_compared, read_method, read_results, read_state
from clead.figures.style import data_name, format_eps, model_name

Row = dict[str, Any]
PLAIN_WIDTH = 100
MOST_COLUMNS = 8  # more accuracies than this go into further tables below the first
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
    for column in somewhere:
        has = [f"{name} {grid.text(line, column)}" for line, name in grid.lines.items() if (line, column) in grid.cells]
        footer.append(f"Not measured on every model: {column.title}: {', '.join(has)}")
    return footer


def results_table(rows: Sequence[Row]) -> Table:
    """One line per model, one column per attack and radius; the best of each column in bold.

    Args:
        rows: rows of results.json, as ``load_rows`` gives them (with ``method``, the trained model's method).
    """
    grid = arrange(rows)
    table = lay_out(grid, grid.columns)
    table.caption = Text("\n".join(grid.footer))
    return table


def lay_out(grid: Grid, columns: Sequence[Column]) -> Table:
    """Some columns of the grid as a table; the lines of several runs stand under the name of their run."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left", caption_style="")
    table.add_column(Text("\neps"), overflow="fold")
    for column in columns:
        table.add_column(Text(f"{column.name}\n{column.radius}"), justify="right", no_wrap=True)
    runs = list(dict.fromkeys(line.run for line in grid.lines))
    for run in runs:
        if len(runs) > 1:
            table.add_row(Text(run))
        for line, name in grid.lines.items():
            if line.run == run:
                cells = [Text(grid.text(line, of), "bold" if grid.best(line, of) else "") for of in columns]
                table.add_row(Text("  " + name if len(runs) > 1 else name), *cells)
    return table


def to_markdown(rows: Sequence[Row]) -> str:
    """The results table in Markdown; the best of each column in bold."""
    grid = arrange(rows)
    several = len({line.run for line in grid.lines}) > 1
    heads = [column.title for column in grid.columns]
    table = [[*(["run"] if several else []), "model", *heads]]
    table.append(["---"] * (len(table[0]) - len(heads)) + ["---:"] * len(heads))
    for line, name in grid.lines.items():
        cells = [grid.text(line, column) for column in grid.columns]
        bold = [grid.best(line, column) for column in grid.columns]
        values = [f"**{cell}**" if best else cell for cell, best in zip(cells, bold, strict=True)]
        table.append([*([line.run] if several else []), name, *values])
    text = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in table]
    return "\n".join([*text, "", *(f"{sentence}  " for sentence in grid.footer)]).rstrip() + "\n"


def load_rows(run: Path) -> list[Row]:
    """The rows of a run's results.json, with its method under ``method`` and its folder's name under ``run``."""
    method = read_method(run)
    return [row | {"run": run.resolve().name, "method": method} for row in read_results(run)]


def show(runs: Sequence[Path], console: Console, *, figures: bool = True, markdown: bool = False) -> None:
    """Print the table of ``runs`` and what they lack; draw their figures and print where they are.

    Raises:
        UserError: a path is no run folder, or one of its files is malformed.
    """
    rows, notes = collect(runs)
    for dataset in dict.fromkeys(row.get("dataset") for row in rows):
        show_table([row for row in rows if row.get("dataset") == dataset], console, markdown=markdown)
    emit(console, *notes)
    if not figures:
        return
    for run in runs:
        for path in draw_all(run, lambda reason: emit(console, reason)):
            emit(console, f"drew {path}")


def show_table(rows: Sequence[Row], console: Console, *, markdown: bool) -> None:
    """Print the table of rows measured on one data set, in as many parts as it is too wide for one."""
    if markdown:
        emit(console, to_markdown(rows))
        return
    grid = arrange(rows)
    for start in range(0, len(grid.columns), MOST_COLUMNS):
        console.print(lay_out(grid, grid.columns[start : start + MOST_COLUMNS]))
        emit(console, "")
    for sentence in grid.footer:
        console.print(sentence, markup=False, highlight=False, emoji=False)
    emit(console, "")


def collect(runs: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all runs, and a sentence for everything a run does not have yet."""
    rows: list[Row] = []
    notes = []
    for run in runs:
        state = read_state(run)
        try:
            found = load_rows(run)
        except MissingFile as error:
            notes.append(f"{run} ({state}) is not in the table: {error}")
            continue
        if any(row["run"] == of["run"] for row in found[:1] for of in rows):
            found = [row | {"run": str(run)} for row in found]
        rows += found
        missing = [model for model in ("trained", *read_compared(run)) if model not in {row["model"] for row in found}]
        if missing:
            notes.append(f"{run} ({state}) has no results of: {', '.join(missing)}")
        elif state != "done":
            notes.append(f"{run} is not finished: its state is {state}")
    return rows, notes


def emit(console: Console, *lines: str) -> None:
    """Print lines as they are: no markup, no colours, no wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def output_console() -> Console:
    """Standard output: as wide as the terminal, or 100 columns of plain text where it is none."""
    if sys.stdout.isatty():
        return Console()
    return Console(width=PLAIN_WIDTH, color_system=None, force_terminal=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clead.report", description="Print the results table of runs and draw their figures."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder, such as runs/clead-digits-s0")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--no-figures", action="store_true", help="print the table only")
    arguments = parser.parse_args(argv)
    try:
        runs = list({run.resolve(): run for run in arguments.runs}.values())
        show(runs, output_console(), figures=not arguments.no_figures, markdown=arguments.markdown)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
