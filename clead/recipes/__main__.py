"""``python -m clead.recipes [WORD… | show NAME]``: recipes with their sources, commands and numbers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from clead.cli import config_values
from clead.engine.files import read_json
from clead.errors import ArgumentParser, UserError, run_command
from clead.own_modules import HELP as IMPORT_HELP
from clead.own_modules import import_own
from clead.recipes import RECIPES, Recipe, find_recipe

RESULTS = Path(__file__).resolve().parents[2] / "results"
"""What ``python -m clead.study`` measured, in a checkout."""


def main(argv: list[str]) -> None:
    """The command."""
    parser = ArgumentParser(
        prog="python -m clead.recipes", description="List the recipes, or show one with its whole configuration."
    )
    only = "only recipes with all of these in their names, such as clae cifar10; or: show NAME"
    parser.add_argument("words", metavar="WORD", nargs="*", help=only)
    parser.add_argument("--import", dest="modules", metavar="MODULE,…", help=IMPORT_HELP)
    import_own(argv)
    words: list[str] = parser.parse_intermixed_args(argv).words
    if words[:1] == ["show"]:
        if len(words) != 2:
            raise UserError(f"show must be followed by the name of one recipe, got {' '.join(words[1:]) or 'none'}")
        recipe = find_recipe(words[1])
        print(_summary(recipe))
        print(f"  config: {json.dumps(config_values(recipe.config), indent=2)}")
        return
    found = [recipe for recipe in RECIPES.values() if all(word in recipe.name for word in words)]
    if not found:
        raise UserError(f"expected words of the names of recipes, such as clae cifar10, got {' '.join(words)}")
    for recipe in found:
        print(_summary(recipe))


def _summary(recipe: Recipe) -> str:
    lines = [recipe.name, recipe.command, f"settings: {recipe.source}"]
    if recipe.paper:
        lines.append(f"paper: {recipe.paper}")
    lines.append(f"ours: {_measured(recipe)}")
    return "\n  ".join(lines)


def _measured(recipe: Recipe) -> str:
    """Mean over seeds of what the study of this data set has of the recipe, smallest and largest in brackets."""
    if not RESULTS.is_dir():
        return "in the folder results of a checkout, which is not here"
    file = RESULTS / recipe.config.data / "study.json"
    rows: list[dict[str, Any]] = []
    if file.is_file() and recipe.name == f"{recipe.method}_{recipe.config.data}":  # those are what a study trains
        rows = [row for row in read_json(file, schema=1)["rows"] if row["method"] == recipe.method]
    if not rows:
        return "not measured"
    names = {"clean": "clean", "pgd20": "PGD-20 at eps 0.15", "few_labels": "two labels per class"}
    spreads = [f"{name} {_spread([100 * row[key] for row in rows])}" for key, name in names.items()]
    return f"{', '.join(spreads)}; {len(rows)} seeds, {RESULTS.name}/{recipe.config.data}"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} … {max(values):.1f})"


if __name__ == "__main__":
    run_command(main)
