"""Recipes: a method's configuration for a data set, and the paper's numbers for it.

``python -m clead.train METHOD --data D`` starts from the recipe ``<method>_<data>``; flags override its fields.
"""

import difflib
from dataclasses import fields, replace

from clead.config import ContrastiveConfig
from clead.errors import UserError
from clead.methods import METHODS, find_method
from clead.recipes import adversarial_contrastive, ascl, cifar10, digits, false_negatives, other_data, supervised
from clead.recipes.base import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for module in (digits, cifar10, supervised, false_negatives, adversarial_contrastive, ascl, other_data)
    for recipe in module.RECIPES
}

__all__ = ["RECIPES", "Recipe", "default_recipe", "find_recipe"]


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``; a UserError names the nearest one."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown recipe {name!r}; the nearest is {near!r}")


def default_recipe(method: str, data: str) -> Recipe:
    """The first recipe of a method for a data set; where it has none, that for CIFAR-10.

    A method without any, such as your own, borrows the settings that it shares with the method it is derived from, or
    with ``simclr`` where it has a projector, ``ce`` where it has none; the others have the defaults of its ``Config``.
    """
    found = find_method(method)
    for name in (data, "cifar10"):
        for recipe in RECIPES.values():
            if recipe.method == method and recipe.config.data == name:
                return recipe
    lender = default_recipe(_lender(method), data)
    names = {field.name for field in fields(lender.config)} & {field.name for field in fields(found.Config)}
    config = found.Config(**{name: getattr(lender.config, name) for name in names})
    source = f"those of {lender.name}, as {method} has no recipe"
    return replace(lender, name=f"{method}_{lender.config.data}", method=method, config=config, source=source, paper="")


def _lender(method: str) -> str:
    """The method with recipes whose settings fit one without."""
    with_recipes = {METHODS[recipe.method]: recipe.method for recipe in RECIPES.values()}
    for base in METHODS[method].__mro__[1:]:
        if base in with_recipes:
            return with_recipes[base]
    return "simclr" if issubclass(METHODS[method].Config, ContrastiveConfig) else "ce"
