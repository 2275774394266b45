"""``--import MODULE,…``: modules of yours, which add to METHODS, RECIPES, DATASETS, ENCODERS or AUGMENTATIONS."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from clead.errors import UserError

HELP = "Import these first: modules of yours that add to METHODS, RECIPES, DATASETS, ENCODERS or AUGMENTATIONS."


def import_own(argv: Sequence[str]) -> None:
    """Import the modules that a command line names, before anything in it is looked up.

    They are named there only; nothing that is read from a file is ever imported.

    Raises:
        UserError: Python finds no such module. What a module of yours raises comes through, to be read with its
            traceback.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    try:
        seen, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:
        return  # without a value: the command's own parser says so
    for name in filter(None, ",".join(seen.modules).split(",")):
        try:
            importlib.import_module(name)
        except (ModuleNotFoundError, TypeError) as error:  # the second of a name that begins with a dot
            absent = getattr(error, "name", None)
            if not name.startswith(".") and (absent is None or not f"{name}.".startswith(f"{absent}.")):
                raise
            raise UserError(
                f"--import must be a module that Python finds, such as mine for mine.py in this folder, got {name!r}"
            ) from error
