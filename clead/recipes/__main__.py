"""``python -m clead.recipes``: every recipe with its source, the paper's number and the command that runs it."""

from clead.recipes import RECIPES


def main() -> None:
    """The command."""
    for recipe in RECIPES.values():
        print(f"{recipe.name}\n  {recipe.command}\n  settings: {recipe.source}")
        if recipe.paper:
            print(f"  paper: {recipe.paper}")


if __name__ == "__main__":
    main()
