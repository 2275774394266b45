"""Reads ``figures/<name>.safetensors``: what ``python -m clead.evaluate --protocols <name>`` found of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clead.errors import UserError
from clead.figures.files import COMPARISONS, MissingFile, read_arrays, read_method
from clead.figures.style import model_name

FACTS = ("figure", "model", "method", "data", "classes", "eps")
Shape = tuple[str | int, ...]  # letters stand for sizes, the same letter for the same size


@dataclass(frozen=True)
class Picture:
    """What one figure shows of one model.

    Attributes:
        path: the file.
        arrays: by name, float32 or int64.
        facts: how they came to be.
        classes: names of the labels.
        eps: radius of the perturbations, pixels in [0, 1].
    """

    path: Path
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, str]
    classes: list[str]
    eps: float


def read_pictures(
    run: Path, figure: str, shapes: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None
) -> dict[str, Picture]:
    """The data of a figure by what people call the model: the run's first, then those of its comparisons that have it.

    Args:
        run: the run folder.
        figure: the figure's name.
        shapes: the arrays that must be there.
        optional: those that may be.

    Raises:
        MissingFile: the run has no data for it yet.
        UserError: a file is malformed.
    """
    found = {model_name("trained", read_method(run)): read_picture(run, figure, shapes, optional or {})}
    for model in COMPARISONS:
        try:
            found[model_name(model, "")] = read_picture(run / "comparisons" / model, figure, shapes, optional or {})
        except MissingFile:
            continue
    return found


def read_picture(run: Path, figure: str, shapes: Mapping[str, Shape], optional: Mapping[str, Shape]) -> Picture:
    """The data of a figure of the model in ``run``."""
    path = run / "figures" / f"{figure}.safetensors"
    if not path.is_file():
        command = f"python -m clead.evaluate {run} --protocols {figure}"
        raise MissingFile(f"{path}: expected the data of the figure, found none; {command} computes it")
    arrays, facts = read_arrays(path)
    if facts.get("schema") != "1" or facts.get("figure") != figure:
        raise UserError(f"{path}: expected schema 1 of the figure {figure}, found {facts.get('schema')!r:.40}")
    _check(path, arrays, {**shapes, **{name: shape for name, shape in optional.items() if name in arrays}})
    try:
        classes, eps = json.loads(facts["classes"]), float(facts["eps"])
        named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if set(FACTS) - set(facts) or not named:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: expected metadata {', '.join(FACTS)}, found {str(facts)[:200]}") from error
    return Picture(path, arrays, facts, classes, eps)


def _check(path: Path, arrays: dict[str, NDArray[Any]], shapes: Mapping[str, Shape]) -> None:
    """A UserError unless every array is there, of the shape expected, and without infinities."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"{path}: expected the array {name}, found {', '.join(arrays) or 'nothing'}")
        array = arrays[name]
        fits = len(array.shape) == len(shape) and array.size > 0 and array.dtype in (np.float32, np.int64)
        for letter, size in zip(shape, array.shape, strict=False):
            fits &= size == (sizes.setdefault(letter, size) if isinstance(letter, str) else letter)
        if not fits:
            expected = "×".join(map(str, shape))
            raise UserError(f"{path}: expected {name} to be numbers [{expected}], found {array.dtype} {array.shape}")
        if np.isinf(array).any():
            raise UserError(f"{path}: expected {name} to be finite, found infinity")
