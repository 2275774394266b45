"""Functions that are told of every logged step: ``--callbacks module:function``.

A callback gets the run folder and the line that ``metrics.jsonl`` got: ``stage, epoch, step, loss, …``. They are named
on the command line only; nothing that is read from a file is ever imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clead.errors import UserError, one_line

Callback = Callable[[Path, dict[str, Any]], None]

_writers: dict[Path, Any] = {}


def find_callback(name: str) -> Callback:
    """The function called ``module:function``; modules in the current folder are found too."""
    module, _, function = name.partition(":")
    try:
        found: Callback = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--callbacks must be module:function, got {name!r}: {one_line(error)}") from error
    if not callable(found):
        raise UserError(f"--callbacks must be module:function, got {name!r}: a {type(found).__name__}")
    return found


def tensorboard(folder: Path, line: dict[str, Any]) -> None:
    """Every number of a logged step as a TensorBoard scalar, in ``<run>/tensorboard``."""
    if folder not in _writers:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"clead.callbacks:tensorboard needs `pip install tensorboard`: {one_line(error)}"
            ) from error
        _writers[folder] = SummaryWriter(folder / "tensorboard")
    numbers = {**line, **line.get("metrics", {})}
    for name, value in numbers.items():
        if isinstance(value, float):
            _writers[folder].add_scalar(f"{line['stage']}/{name}", value, line["step"])
