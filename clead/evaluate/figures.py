"""The data of figures: computed of a model, written where ``clead.report`` draws it from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save as save_tensors

from clead.engine.files import write_atomic
from clead.errors import UserError
from clead.evaluate.models import Opened
from clead.protocols.figure_data import FIGURE_DATA, Look

FROM_ROWS = ("sweep_eps", "sweep_steps", "corruptions")  # protocols whose rows are figures
EVERY = "figures"
SCHEMA = "1"


def expand(protocols: Sequence[str]) -> list[str]:
    """The protocols with ``figures`` replaced by all that figures are drawn of."""
    every = [*FROM_ROWS, *FIGURE_DATA]
    return list(dict.fromkeys(name for word in protocols for name in (every if word == EVERY else [word])))


def folder_of(opened: Opened) -> Path:
    """The run folder that the figures of a model are drawn from; a UserError where its rows go elsewhere."""
    folder = opened.folders[0]
    if not (folder / "run.json").is_file():
        raise UserError(f"{opened.subject.name}: figures are drawn from run folders, found no run.json in {folder}")
    return folder


def write_data(opened: Opened, name: str, radii: Sequence[float], versions: str) -> Path:
    """Compute one figure of FIGURE_DATA and write ``figures/<name>.safetensors`` into the model's folder.

    Args:
        opened: the model.
        name: key of FIGURE_DATA.
        radii: linf radii of the evaluation; the largest is that of the figure's perturbations.
        versions: what the numbers were computed with.

    Returns:
        The path of the file.

    Raises:
        NotApplicable: the figure does not exist of this model.
        UserError: see ``folder_of``; or there is no radius above 0.
    """
    subject = opened.subject
    if not max(radii) > 0:
        raise UserError(f"{name} needs a radius above 0, got {max(radii)}")
    found = FIGURE_DATA[name](Look(subject, max(radii)))
    key = subject.key
    facts = {
        "schema": SCHEMA,
        "figure": name,
        "model": str(key["model"]),
        "method": opened.method,
        "data": f"{key['dataset']}, {key['split']} images",
        "classes": json.dumps(subject.test.classes),
        "eps": repr(max(radii)),
        "versions": versions,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.tensors.items()}
    path = folder_of(opened) / "figures" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, save_tensors(tensors, facts | found.facts))
    return path
