"""Rows of ``results.json``: what was measured, on how many samples, and how certain it is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clead.engine.files import read_json, write_json
from clead.errors import UserError

SCHEMA = 1
KEY = (
    "run",
    "model",
    "protocol",
    "bn_branch",
    "dataset",
    "split",
    "corruption",
    "severity",
    "attack",
    "norm",
    "eps",
    "steps",
    "step_size",
    "restarts",
    "seed",
    "dtype",
)

Row = dict[str, Any]


def row_key(row: Row) -> tuple[Any, ...]:
    """What identifies a row; fields that are not given are null."""
    return tuple(row.get(field) for field in KEY)


def make_row(
    *, name: str, correct: int, samples: int, seconds: float, flags: list[str] | None = None, **key: Any
) -> Row:
    """A row; key fields that are not given have no meaning for it and are null."""
    unknown = set(key) - set(KEY)
    if unknown:
        raise TypeError(f"not a field of a result row: {sorted(unknown)}")
    low, high = wilson(correct, samples)
    return {
        **dict.fromkeys(KEY),
        **key,
        "name": name,
        "accuracy": correct / samples,
        "samples": samples,
        "low": low,
        "high": high,
        "flags": flags or [],
        "seconds": round(seconds, 3),
    }


def wilson(correct: int, samples: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion."""
    z = 1.959963984540054
    p = correct / samples
    centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples * samples))
    # At 0 and 1 the bound is the proportion itself; rounding may leave it 1e-17 away.
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == samples else centre + half)


def read_results(path: Path) -> list[Row]:
    """The rows of a ``results.json``; none when the file does not exist yet."""
    if not path.exists():
        return []
    rows = read_json(path, schema=SCHEMA).get("results")
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list under results, found {type(rows).__name__}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or any(isinstance(value, (list, dict)) for value in row_key(row)):
            raise UserError(f"{path}: expected row {index} to be an object with plain key fields, found {row!r:.60}")
    return rows


def renamed(row: Row, run: str) -> Row:
    """A row, or a measure, under the name its run has now; attacks made on the run itself are named after it too."""
    itself = re.compile(rf"(^transfer:| from ){re.escape(str(row.get('run')))}(?= |$)")
    said = {name: value for name in ("attack", "name", "of") if isinstance(value := row.get(name), str)}
    now = {name: itself.sub(lambda found: found[1] + run, value) for name, value in said.items()}
    return {**row, **now, "run": run}


def add_results(path: Path, rows: Sequence[Row], run: str | None) -> None:
    """Add rows to a ``results.json``; one with the key of an older row replaces it.

    Args:
        path: the file; made where it is missing.
        rows: what to add.
        run: the name that the run of all rows there has now; None where the file has rows of several.
    """
    write_results(path, merged(read_results(path), rows, run, KEY))


def merged(found: Sequence[Row], more: Sequence[Row], run: str | None, key: Sequence[str]) -> list[Row]:
    """``found`` under the name ``run``, unless that is None, and ``more``, of which one replaces what has its key."""
    found = found if run is None else [renamed(row, run) for row in found]
    return list({tuple(row.get(name) for name in key): row for row in [*found, *more]}.values())


def write_results(path: Path, rows: list[Row]) -> None:
    """Write all rows atomically."""
    write_json(path, {"schema": SCHEMA, "results": rows})
