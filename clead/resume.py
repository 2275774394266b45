"""What a command that continues a run may change of its settings."""

from __future__ import annotations

from typing import Any

from clead.cli import Plan, config_values, read_config
from clead.config import CLASSIFIER_STAGES
from clead.engine import checkpoint
from clead.engine.run import RunFolder
from clead.errors import UserError

# What may differ between a run folder and the command that resumes it: nothing that changes the weights.
_MAY_CHANGE = {"data_dir", "download", "device", "threads", "stages"} | {
    *("checkpoint_every", "checkpoint_minutes", "on_nonfinite", "deterministic", "residence", "prefetch")
}
# Of these, what was asked for last is kept.
_MEASURED = {"evaluation", "knn", "compare"}


def configuration(plan: Plan) -> tuple[str, dict[str, Any]]:
    """The recipe and the settings that ``config.json`` is to hold; a UserError where a run to resume has others."""
    values, folder = config_values(plan.config), RunFolder(plan.out)
    if not plan.resume or not folder.config_file.exists():
        return plan.recipe, values
    _, recipe, config = read_config(folder.config_file)
    saved = config_values(config)
    ahead = _still_ahead(folder)
    for key, value in saved.items():
        if key not in _MAY_CHANGE | _MEASURED | ahead and value != values[key]:
            name, asked, there = _difference(key, values[key], value)
            raise UserError(f"{folder.path}: cannot resume with {name} {asked!r}, the run has {there!r}")
    # What was trained and where stays as it was.
    return recipe, saved | {key: values[key] for key in _MEASURED | ahead}


def _difference(name: str, asked: Any, there: Any) -> tuple[str, Any, Any]:
    """The first setting inside ``name`` that differs: its full name, and both values."""
    if isinstance(there, dict):
        key = next(key for key in there if asked[key] != there[key])
        return _difference(f"{name}.{key}", asked[key], there[key])
    return name, asked, there


def _still_ahead(folder: RunFolder) -> set[str]:
    """The settings of the classifiers that the run has not begun."""
    stages: set[str] = {stage for stage in CLASSIFIER_STAGES if checkpoint.latest(folder.checkpoints, stage) is None}
    regressions = [row for row in folder.results if str(row.get("protocol")).startswith("logistic_regression")]
    return stages - set(folder.stages) | (set() if regressions else {"logistic_regression"})
