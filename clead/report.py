"""``python -m clead.report RUN…``: the results table of runs and evaluations, their figures, and a page of all that."""

from __future__ import annotations

from clead.errors import ArgumentParser, leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clead.figures.files import (
    MissingFile,
    is_evaluation,
    read_compared,
    read_method,
    read_names,
    read_results,
    read_state,
)
from clead.figures.table import Column, Grid, Row, arrange, is_plain

PLAIN_WIDTH = 100
MOST_COLUMNS = 8  # more accuracies than this go into further tables below the first


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
    """The rows of a results.json, with the method under ``method`` and, of a run, its folder's name under ``run``."""
    method, name = read_method(run), None if is_evaluation(run) else run.resolve().name
    return [row | {"run": name or str(row.get("run")), "method": method} for row in read_results(run)]


def show(
    runs: Sequence[Path], console: Console, *, figures: bool = True, markdown: bool = False, lacks: bool = True
) -> None:
    """Print the table of ``runs`` and, with ``lacks``, what they lack; draw their figures and print where they are.

    Raises:
        UserError: a path is no run folder, or one of its files is malformed.
    """
    rows, notes = collect(runs)
    for dataset in dict.fromkeys(row.get("dataset") for row in rows):
        show_table([row for row in rows if row.get("dataset") == dataset], console, markdown=markdown)
    if lacks:
        emit(console, *notes)
    if not figures:
        return
    from clead.figures.drawing import draw_all  # brings matplotlib along

    for run in runs:
        outside = is_evaluation(run)
        if outside and len(read_names(run)) > 1:
            emit(console, f"{run} holds rows of {len(read_names(run))} models: no figures, each of which shows one")
            continue
        drawn = draw_all(run, (lambda reason: emit(console, reason)) if lacks and not outside else None)
        if drawn:
            emit(console, f"drew {run / 'figures'}: {', '.join(path.stem for path in drawn)}")


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
        if {row["run"] for row in found} & {row["run"] for row in rows}:
            found = [row | {"run": f"{run}/{row['run']}" if is_evaluation(run) else str(run)} for row in found]
        rows += [row for row in found if is_plain(row)]
        if is_evaluation(run):
            continue
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


def runs_in(path: Path) -> list[Path]:
    """The runs and evaluations inside a folder that is no run itself, such as ``runs``, and it if it is one or none."""
    if (path / "run.json").exists() or not path.is_dir():
        return [path]
    children = [child for child in sorted(path.iterdir()) if (child / "run.json").is_file() or is_evaluation(child)]
    return [path, *children] if is_evaluation(path) or not children else children


def page_folder(runs: Sequence[Path]) -> Path:
    """Where the page goes that was given no place: into the run, or beside several runs of one folder."""
    folders = {run.resolve().parent for run in runs}
    if len(runs) == 1:
        return runs[0]
    return folders.pop() if len(folders) == 1 else Path()


def main(argv: list[str]) -> None:
    """The command."""
    parser = ArgumentParser(
        prog="python -m clead.report",
        description="Print the results table of runs, draw their figures and write a page about them.",
    )
    what = "a run folder, such as runs/clead-digits-s0, that of clead.evaluate --out, or a folder of them, such as runs"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=what)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--no-figures", action="store_true", help="print the table only")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the page; default the run, or the folder that holds all runs"
    )
    arguments = parser.parse_intermixed_args(argv)
    runs = list({run.resolve(): run for named in arguments.runs for run in runs_in(named)}.values())
    console = output_console()
    show(runs, console, figures=not arguments.no_figures, markdown=arguments.markdown)
    if not arguments.no_figures:
        from clead.summary import write_page  # the recipes, to compare with, bring torch along

        for path in write_page(runs, arguments.out or page_folder(runs)):
            emit(console, f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
