"""The runs of a page, and which of them differ in their seed only."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clead.engine.results import renamed
from clead.figures.files import (
    MissingFile,
    is_evaluation,
    read_config,
    read_method,
    read_names,
    read_object,
    read_results,
    read_state,
)
from clead.figures.style import method_name
from clead.figures.table import Row

# What a number does not depend on, and the seed, which a group of runs is averaged over.
NO_SETTINGS = {
    "seed",
    "data_dir",
    "download",
    "device",
    "threads",
    "deterministic",
    "impl",
    "speed",
    "compare",
    "checkpoint_every",
    "checkpoint_minutes",
    "on_nonfinite",
}


@dataclass(frozen=True)
class Run:
    """One run folder, or one model of an evaluation, which has no recipe, settings and seed.

    Attributes:
        path: the folder.
        name: what people call it: of a run the folder's name.
        state: ``running``, ``done`` or ``failed``.
        method: key of METHODS.
        recipe: key of RECIPES that it started from; may be empty.
        settings: its configuration, flat, without NO_SETTINGS.
        seed: of its random streams.
        rows: of results.json.
        environment: of env.json; empty where that is missing.
        outside: it is of an evaluation.
    """

    path: Path
    name: str
    state: str
    method: str
    recipe: str
    settings: dict[str, Any]
    seed: Any
    rows: list[Row]
    environment: dict[str, Any]
    outside: bool = False

    @property
    def place(self) -> str:
        """What tells it from others of its name."""
        return f"{self.path}/{self.name}" if self.outside else str(self.path)


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and different seeds.

    Attributes:
        name: what people call them.
        runs: in the order given.
    """

    name: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        """The run whose figures stand for all."""
        return self.runs[0]

    @property
    def seeds(self) -> str:
        """``1 seed (0)``, ``3 seeds (0, 1, 2)``."""
        return f"{len(self.runs)} seed{'s' * (len(self.runs) > 1)} ({', '.join(str(run.seed) for run in self.runs)})"


def read_runs(path: Path) -> list[Run]:
    """The run in a folder, or the models of the evaluation that it holds."""
    if not is_evaluation(path):
        return [read_run(path)]
    rows = read_results(path)
    return [
        Run(path, name, "done", "trained", "", {}, None, [row for row in rows if str(row.get("run")) == name], {}, True)
        for name in read_names(path)
    ]


def read_run(path: Path) -> Run:
    """What the page needs of a run folder; a run without results yet has no rows."""
    name, state, config = path.resolve().name, read_state(path), read_config(path)
    values = config.get("values")
    values = values if isinstance(values, dict) else {}
    try:
        rows = [renamed(row, name) for row in read_results(path)]
    except MissingFile:
        rows = []
    try:
        environment = read_object(path / "env.json")
    except MissingFile:
        environment = {}
    recipe = config.get("recipe")
    return Run(
        path,
        name,
        state,
        read_method(path),
        recipe if isinstance(recipe, str) else "",
        flatten({key: value for key, value in values.items() if key not in NO_SETTINGS}),
        values.get("seed"),
        rows,
        environment,
    )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"attack": {"eps": 0.1}}`` as ``{"attack.eps": 0.1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by settings; every seed counts once, so a copy of a run is a group of its own."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        settings = (run.method, json.dumps(run.settings, sort_keys=True))
        copy = 0
        while any(run.seed == other.seed for other in groups.get((*settings, copy), [])):
            copy += 1
        groups.setdefault((*settings, copy), []).append(run)
    names = [_name_of(of) for of in groups.values()]
    # Two of one name (a copy, or runs of one name in other folders) are told apart by where they are.
    return [
        Group(name if names.count(name) == 1 else of[0].place, of)
        for name, of in zip(names, groups.values(), strict=True)
    ]


def _name_of(runs: list[Run]) -> str:
    """``clead-digits`` for clead-digits-s0, -s1; the folder's name for a single run."""
    stems = {re.sub(r"-s\d+$", "", run.name) for run in runs}
    if len(runs) == 1:
        return runs[0].name
    return stems.pop() if len(stems) == 1 else f"{method_name(runs[0].method)}, as {runs[0].name}"
