"""``python -m clead.recipes [show NAME]``: the recipes with their sources, the papers' numbers and their commands."""

from __future__ import annotations

import argparse
import json

from clead.cli import config_values
from clead.errors import run_command
from clead.recipes import RECIPES, Recipe, find_recipe


def main(argv: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m clead.recipes", description="List the recipes, or show one with its whole configuration."
    )
    commands = parser.add_subparsers(metavar="show NAME")
    commands.add_parser("show", help="one recipe").add_argument("name", metavar="NAME", help="such as acl_cifar10")
    name = getattr(parser.parse_args(argv), "name", None)
    if name is None:
        for recipe in RECIPES.values():
            print(_summary(recipe))
    else:
        recipe = find_recipe(name)
        print(_summary(recipe))
        print(f"  config: {json.dumps(config_values(recipe.config), indent=2)}")


def _summary(recipe: Recipe) -> str:
    lines = [recipe.name, recipe.command, f"settings: {recipe.source}"]
    if recipe.paper:
        lines.append(f"paper: {recipe.paper}")
    return "\n  ".join(lines)


if __name__ == "__main__":
    run_command(main)
