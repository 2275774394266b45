"""The accuracies of groups of runs: mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from clead.figures.style import OUR_GENERATOR, data_name, format_eps, model_name
from clead.figures.table import Column, Line, Row, arrange, is_plain, ordered_columns
from clead.recipes.tables import TRANSFER
from clead.summary.blocks import Table
from clead.summary.runs import Group


@dataclass(frozen=True)
class Cell:
    """What was measured of one model of a group, one row of results.json per seed."""

    rows: list[Row]

    @property
    def mean(self) -> float:
        """The mean accuracy, in [0, 1]."""
        return statistics.fmean(row["accuracy"] for row in self.rows)

    def text(self, seeds: int) -> str:
        """``54.7``, or ``54.7 ± 0.5`` over seeds (the sample's standard deviation); says so if seeds are missing."""
        percents = [100 * row["accuracy"] for row in self.rows]
        text = f"{statistics.fmean(percents):.1f}"
        if len(percents) > 1:
            text += f" ± {statistics.stdev(percents):.1f}"
        return text if len(percents) == seeds else f"{text} ({len(percents)} of {seeds})"


Cells = dict[tuple[Line, Column], Cell]


def cells_of(group: Group) -> Cells:
    """The cells of a group; of rows that differ in seed, step size or restarts within a run the lowest counts."""
    found: dict[tuple[Line, Column], list[Row]] = {}
    for run in group.runs:
        named = [row | {"run": run.name, "method": run.method} for row in run.rows if is_plain(row)]
        for (line, column), row in arrange(named).cells.items():
            found.setdefault((replace(line, run=group.name), column), []).append(row)
    return {key: Cell(rows) for key, rows in found.items()}


def results_tables(groups: Sequence[Group]) -> list[Table]:
    """One table per data set: a row per group and model, a column per attack and radius."""
    seeds = {group.name: len(group.runs) for group in groups}
    by_data: dict[tuple[str, str], Cells] = {}
    for group in groups:
        for (line, column), cell in cells_of(group).items():
            by_data.setdefault((line.dataset, line.split), {})[line, column] = cell
    return [_table(cells, seeds) for cells in by_data.values()]


def _table(cells: Cells, seeds: dict[str, int]) -> Table:
    # One row stands for all seeds, so that a group is laid out as a run is.
    merged = arrange([cell.rows[0] | {"run": line.run, "accuracy": cell.mean} for (line, _), cell in cells.items()])
    columns = ordered_columns(merged.cells)
    rows, bold = [], set()
    for at, (line, name) in enumerate(merged.lines.items()):
        rows.append([f"{line.run}: {name}", str(seeds[line.run])])
        for column in columns:
            cell = cells.get((line, column))
            if merged.best(line, column):
                bold.add((at, len(rows[-1])))
            rows[-1].append("–" if cell is None else cell.text(seeds[line.run]))
    raw = [row for cell in cells.values() for row in cell.rows]
    heads = ["model", "seeds", *(column.title for column in columns)]
    return Table(heads, rows, data_name(raw), _notes(raw, max(seeds.values())), bold)


def _notes(rows: Iterable[Row], seeds: int) -> list[str]:
    halves = [(row["high"] - row["low"]) / 2 for row in rows if None not in (row.get("low"), row.get("high"))]
    kind = "mean ± standard deviation over seeds; the best mean" if seeds > 1 else "the best"
    notes = [f"Accuracy in %, {kind} of each column in bold; – is not measured."]
    if halves:
        notes.append(f"95% Wilson intervals of a single run: ± {100 * max(halves):.1f} at most.")
    return notes


def corruption_table(groups: Sequence[Group]) -> Table | None:
    """Mean accuracy over the types of corruption and the seeds, by severity; None where no run was given any."""
    found: dict[tuple[str, ...], dict[int, list[Row]]] = {}
    for group in groups:
        for row in (row for run in group.runs for row in run.rows):
            if row.get("corruption") and row.get("severity") and row.get("accuracy") is not None:
                source = "our generator" if OUR_GENERATOR in (row.get("flags") or ()) else "official files"
                model = f"{group.name}: {model_name(row['model'], group.first.method)}"
                line = found.setdefault((model, str(row.get("dataset")), source), {})
                line.setdefault(row["severity"], []).append(row)
    if not found:
        return None
    severities = sorted({severity for by_severity in found.values() for severity in by_severity})
    rows = []
    for (name, *images), by_severity in found.items():
        types = {row["corruption"] for of in by_severity.values() for row in of}
        means = [mean_percent(by_severity.get(severity, [])) for severity in severities]
        rows.append([name, *means, str(len(types)), ", ".join(images)])
    heads = ["model", *(f"severity {severity}" for severity in severities), "types", "images"]
    return Table(heads, rows, notes=["Accuracy in %, mean over types of corruption and seeds."])


def mean_percent(rows: Sequence[Row]) -> str:
    """The mean accuracy in percent, – of no rows."""
    return f"{100 * statistics.fmean(row['accuracy'] for row in rows):.1f}" if rows else "–"


def transfer_tables(groups: Sequence[Group]) -> list[Table]:
    """Targets in rows, sources in columns, one table per norm and radius, with the numbers of ASCL's table 2."""
    recipes = {run.name: run.recipe for group in groups for run in group.runs}
    found: dict[str, dict[tuple[str, str], list[Row]]] = {}
    for row in (row for group in groups for run in group.runs for row in run.rows):
        if str(row.get("attack")).startswith("transfer:") and row.get("accuracy") is not None:
            key = (str(row.get("run")), str(row["attack"]).removeprefix("transfer:"))
            at = f"{row.get('norm')} eps {format_eps(row.get('eps') or 0.0)}"
            found.setdefault(at, {}).setdefault(key, []).append(row)
    tables = []
    for at, cells in found.items():
        targets, sources = (list(dict.fromkeys(key[of] for key in cells)) for of in (0, 1))
        body = []
        for target in targets:
            body.append([target, *(mean_percent(cells.get((target, source), [])) for source in sources)])
            printed = [TRANSFER.get((recipes.get(target, ""), recipes.get(source, ""))) for source in sources]
            if at == "linf eps 8/255" and any(printed):
                body.append(["ASCL table 2", *("–" if value is None else f"{value:g}" for value in printed)])
        tables.append(Table(["target, by source", *sources], body, f"transfer, {at}, accuracy in %"))
    return tables
