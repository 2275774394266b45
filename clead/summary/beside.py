"""The papers' rows beside ours, and what differs in the settings."""

from __future__ import annotations

from collections.abc import Sequence

from clead.cli import config_values
from clead.recipes import RECIPES
from clead.recipes.tables import TABLES, Column, PaperRow, PaperTable
from clead.summary.accuracies import Cell, Cells, cells_of
from clead.summary.blocks import Block, Bullets, Table
from clead.summary.runs import NO_SETTINGS, Group, flatten

# What a run measures or logs besides does not change what it trains.
NO_DIFFERENCE = ("evaluation.", "knn.", "logistic_regression.")


def paper_blocks(groups: Sequence[Group]) -> list[Block]:
    """One table per table of the papers that a group has a row in, then what differs per group."""
    blocks: list[Block] = []
    for table in TABLES:
        there = [(row, group) for row in table.rows for group in groups if group.first.recipe == row.recipe]
        if there:
            blocks.append(_table(table, there))
    differences = [difference(group) for group in groups if not group.first.outside]
    return [*blocks, Bullets(differences)] if differences else blocks


def _table(table: PaperTable, there: list[tuple[PaperRow, Group]]) -> Table:
    rows = []
    for paper, group in there:
        name = f"{paper.recipe}, {paper.protocol}" if paper.protocol else paper.recipe
        rows.append([f"paper: {name}", *("–" if value is None else f"{value:g}" for value in paper.numbers)])
        cells = cells_of(group)
        ours = [find_cell(cells, column, paper.protocol) for column in table.columns]
        texts = ["–" if cell is None else cell.text(len(group.runs)) for cell in ours]
        rows.append([f"ours: {group.name}, {group.seeds}", *texts])
    heads = ["row", *(column.label for column in table.columns)]
    return Table(heads, rows, table.name, [table.note] if table.note else [])


def find_cell(cells: Cells, column: Column, protocol: str) -> Cell | None:
    """The trained model's cell for a column of a paper's table; None if it was not measured."""
    for (line, of), cell in cells.items():
        right = line.model == "trained" and line.protocol.startswith(column.protocol or protocol)
        if right and of.title == column.title:
            return cell
    return None


def difference(group: Group) -> str:
    """A sentence: the settings in which a group's runs differ from their recipe, and where those are from."""
    run = group.first
    recipe = RECIPES.get(run.recipe)
    if recipe is None:
        return f"{group.name}: started from no recipe that is known here."
    values = {key: value for key, value in config_values(recipe.config).items() if key not in NO_SETTINGS}
    theirs = flatten(values)
    changed = [
        f"{key} {_text(run.settings.get(key))} instead of {_text(theirs.get(key))}"
        for key in sorted(theirs.keys() | run.settings.keys())
        if run.settings.get(key) != theirs.get(key) and not key.startswith(NO_DIFFERENCE)
    ]
    source = f"settings of {recipe.name}: {recipe.source}"
    printed = any(row.recipe == recipe.name for table in TABLES for row in table.rows)
    sentence = f"{group.name}: {'; '.join(changed) or 'nothing changed'} ({source})."
    return sentence if printed else f"{sentence} No table of the papers has a row for it."


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
