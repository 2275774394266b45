"""Reads what the figures and the report need from a run folder, or an evaluation's, and writes figures into it.

A run folder holds ``run.json``, ``config.json``, ``metrics.jsonl``, ``results.json``, ``examples.safetensors``,
``figures/<name>.safetensors`` (see ``clead.figures.data``) and ``comparisons/<model>/`` of the same form. The folder of
an evaluation (``clead.evaluate --out``) holds ``results.json`` without a run. Bad files raise UserError;
``MissingFile``, its subclass, stands for what an unfinished run does not have yet.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from clead.errors import UserError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISONS = ("undefended", "random")
LARGEST = 1 << 28  # bytes of a JSON file; ours have some hundred kB
PIXELS_PER_INCH = 240  # 1440 pixels for 6 inches: sharp on a desk and on a telephone


class MissingFile(UserError):
    """A file that is not there (yet), or holds nothing yet."""


@dataclass(frozen=True)
class Examples:
    """A handful of test images and what an attack made of them.

    Attributes:
        clean: float32 [K, C, H, W] in [0, 1].
        adversarial: as ``clean``.
        labels: int64 [K].
        clean_prediction: int64 [K].
        adversarial_prediction: int64 [K].
        attack: the attack's name.
        eps: its radius, pixels in [0, 1].
        model: whose predictions and attack these are.
    """

    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    labels: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    adversarial_prediction: NDArray[np.int64]
    attack: str
    eps: float
    model: str


def read_bytes(path: Path) -> bytes:
    """The content of ``path``; MissingFile where it is absent."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path}: expected at most {LARGEST:,} bytes, found more")
        return content
    except FileNotFoundError as error:
        raise MissingFile(f"{path}: expected this file of the run folder, found none") from error
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got: {error.strerror}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``."""
    content = read_bytes(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON object, found {len(content)} bytes that are no JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def is_evaluation(folder: Path) -> bool:
    """Whether it holds the rows of an evaluation and no run."""
    of_run = any((folder / name).is_file() for name in ("run.json", "config.json"))
    return (folder / "results.json").is_file() and not of_run


def read_names(folder: Path) -> list[str]:
    """The models that the rows of an evaluation are of."""
    return list(dict.fromkeys(str(row.get("run")) for row in read_results(folder)))


def read_state(run: Path) -> str:
    """``running``, ``done`` or ``failed``; UserError where ``run`` is no run folder, nor that of an evaluation."""
    if is_evaluation(run):
        return "done"
    if not (run / "run.json").is_file():
        found = "a folder without one" if run.is_dir() else "no such folder"
        raise UserError(f"{run}: expected a run folder with a run.json in it, found {found}")
    state = read_object(run / "run.json").get("state")
    if state not in ("running", "done", "failed"):
        raise UserError(f"{run / 'run.json'}: expected state running, done or failed, found {state!r}")
    return str(state)


def read_config(run: Path) -> dict[str, Any]:
    """The run's config.json, which even a run that has only begun must have."""
    try:
        return read_object(run / "config.json")
    except MissingFile as error:
        raise UserError(str(error)) from error


def read_method(run: Path) -> str:
    """The key of the run's method; of an evaluation the name of its model, or ``trained`` where it has several."""
    if is_evaluation(run):
        names = read_names(run)
        return names[0] if len(names) == 1 else "trained"
    method = read_config(run).get("method")
    if not isinstance(method, str):
        raise UserError(f"{run / 'config.json'}: expected the name of a method under method, found {method!r}")
    return method


def read_value(run: Path, name: str) -> object:
    """A field of the run's configuration, None where it has no such field."""
    values = read_config(run).get("values")
    return values.get(name) if isinstance(values, dict) else None


def read_data(run: Path) -> str:
    """The name of the run's data set, ``""`` where its configuration has none."""
    data = read_value(run, "data")
    return data if isinstance(data, str) else ""


def read_compared(run: Path) -> list[str]:
    """The comparison models the run was asked for."""
    compared = read_value(run, "compare")
    return [model for model in COMPARISONS if isinstance(compared, list) and model in compared]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; a last line cut off by a crash is left out."""
    path = run / "metrics.jsonl"
    lines = read_bytes(path).split(b"\n")
    last = max((index for index, line in enumerate(lines) if line.strip()), default=-1)
    metrics = []
    for index, line in enumerate(lines[: last + 1]):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if index == last:
                break
            raise UserError(f"{path}: expected a JSON object on line {index + 1}, found {line[:40]!r}") from error
        if not (isinstance(entry, dict) and isinstance(entry.get("stage"), str) and type(entry.get("step")) is int):
            raise UserError(f"{path}: expected an object with stage and step on line {index + 1}, found {line[:40]!r}")
        metrics.append(entry)
    return metrics


def read_results(run: Path) -> list[dict[str, Any]]:
    """The rows of results.json."""
    path = run / "results.json"
    content = read_object(path)
    if content.get("schema") != 1:
        raise UserError(f"{path}: expected schema 1, found {content.get('schema')!r}")
    rows = content.get("results")
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list under results, found {type(rows).__name__}")
    for index, row in enumerate(rows):
        _check_row(path, index, row)
    return rows


def _check_row(path: Path, index: int, row: object) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{path}: expected row {index} to be an object, found {type(row).__name__}")
    for key in ("model", "name"):
        if not isinstance(row.get(key), str):
            raise UserError(f"{path}: expected a string under {key} of row {index}, found {row.get(key)!r}")
    for key in ("dataset", "split", "protocol", "bn_branch", "corruption", "attack", "norm"):
        if not isinstance(row.get(key), str | None):
            raise UserError(f"{path}: expected a string or null under {key} of row {index}, found {row[key]!r}")
    for key in ("eps", "samples", "severity"):
        if not _is_number(row.get(key)):
            raise UserError(f"{path}: expected a number or null under {key} of row {index}, found {row[key]!r}")
    if not isinstance(row.get("flags"), list | None):
        raise UserError(f"{path}: expected a list or null under flags of row {index}, found {row['flags']!r}")
    for key in ("accuracy", "low", "high"):
        value = row.get(key)
        # The ends of an interval may miss 0 and 1 by their rounding.
        if not (_is_number(value) and (value is None or -1e-9 <= value <= 1 + 1e-9)):
            raise UserError(f"{path}: expected {key} in [0, 1] in row {index}, found {value!r}")


def _is_number(value: object) -> bool:
    """A finite number, or None for one without meaning."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a safetensors file by name, and its metadata."""
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            return arrays, opened.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: expected a safetensors file, got: {one_line(error)}") from error


def read_examples(run: Path) -> Examples:
    """The images in examples.safetensors."""
    path = run / "examples.safetensors"
    if not path.is_file():
        raise MissingFile(f"{path}: expected this file of the run folder, found none")
    tensors, metadata = read_arrays(path)
    _check_examples(path, tensors)
    try:
        eps = float(metadata["eps"])
        return Examples(**tensors, attack=metadata["attack"], eps=eps, model=metadata["model"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: expected metadata attack, eps and model, found {metadata!r:.200}") from error


def _check_examples(path: Path, tensors: dict[str, Any]) -> None:
    labels = ("labels", "clean_prediction", "adversarial_prediction")
    found = {name: (str(value.dtype), value.shape) for name, value in tensors.items()}
    if set(found) != {"clean", "adversarial", *labels}:
        raise UserError(
            f"{path}: expected tensors clean, adversarial, {', '.join(labels)}, found {', '.join(found) or 'nothing'}"
        )
    shape = tensors["clean"].shape
    if len(shape) != 4 or shape[0] == 0 or shape[1] not in (1, 3):
        raise UserError(f"{path}: expected clean to be [K, 1 or 3, H, W] with K > 0, found {list(shape)}")
    for name in ("clean", "adversarial"):
        value = tensors[name]
        if found[name] != ("float32", shape) or not (value.min() >= 0 and value.max() <= 1):
            raise UserError(f"{path}: expected {name} to be float32 {list(shape)} in [0, 1], found {found[name]}")
    for name in labels:
        if found[name] != ("int64", shape[:1]):
            raise UserError(f"{path}: expected {name} to be int64 {list(shape[:1])}, found {found[name]}")


def comparisons(run: Path) -> dict[str, Path]:
    """The run folders of the comparison models that were at least begun, by model."""
    folders = {model: run / "comparisons" / model for model in COMPARISONS}
    return {model: folder for model, folder in folders.items() if (folder / "metrics.jsonl").is_file()}


def write_figure(figure: Figure, run: Path, name: str) -> Path:
    """Write ``run/figures/<name>.png``, whole or not at all; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = run / "figures" / f"{name}.png"
    unfinished = path.with_name(f".tmp-{name}-{os.getpid()}.png")
    FigureCanvasAgg(figure)
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with warnings.catch_warnings():
                # The name of a run may hold characters that the font lacks; they become boxes.
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                figure.savefig(unfinished, format="png", dpi=PIXELS_PER_INCH, facecolor="white")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: expected to write the figure, got: {error.strerror}") from error
    return path
