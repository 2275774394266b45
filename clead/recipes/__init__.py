"""Recipes: a method's configuration for a data set, and the paper's numbers for it.

``python -m clead.train METHOD --data D`` starts from the recipe ``<method>_<data>``; flags override its fields.
"""

import difflib

from clead.errors import UserError
from clead.recipes import adversarial_contrastive, ascl, cifar10, digits, false_negatives, other_data, supervised
from clead.recipes.base import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for module in (digits, cifar10, supervised, false_negatives, adversarial_contrastive, ascl, other_data)
    for recipe in module.RECIPES
}

__all__ = ["RECIPES", "Recipe", "find_recipe"]


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``; a UserError names the nearest one."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown recipe {name!r}; the nearest is {near!r}")
