"""Checkpoints: ``<stage>-<step>/{weights.safetensors, state.pt, meta.json}``, complete or absent.

A checkpoint is written into ``.tmp-<stage>-<step>``, flushed to disk and renamed; ``meta.json`` carries the sha256 of
the other two files, so that a truncated or altered one is recognised before it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from clead.config import STAGES
from clead.engine.files import read_json, remove_tree, write_json, write_synced
from clead.errors import NewerFile, UserError, one_line

SCHEMA = 1
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk.

    Attributes:
        path: its folder.
        meta: stage, step, epoch, model (what is needed to build it).
        weights: state dict of the model, on the CPU.
        state: optimiser state and whatever else training continues from.
    """

    path: Path
    meta: dict[str, Any]
    weights: dict[str, Tensor]
    state: dict[str, Any]

    def load_weights(self, model: nn.Module) -> None:
        """Copy the weights into ``model``; a UserError says what of it they do not fit."""
        try:
            model.load_state_dict(self.weights, strict=True)
        except RuntimeError as error:
            raise UserError(f"{self.path / 'weights.safetensors'}: {' '.join(str(error).split())}") from error


def save(folder: Path, meta: dict[str, Any], weights: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint into ``folder`` (a run's ``checkpoints``) and drop all but the last two of its stage."""
    name = _name(meta)
    final, temporary = folder / name, folder / f".tmp-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # Cloning undoes sharing (tied affine parameters of batch-norm branches), which safetensors refuses.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        parts = {"weights.safetensors": save_tensors(tensors), "state.pt": buffer.getvalue()}
        for part, data in parts.items():
            write_synced(temporary / part, data)
        digests = {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()}
        write_json(temporary / "meta.json", {"schema": SCHEMA, **meta, "sha256": digests})
        if final.exists():
            remove_tree(final)
        temporary.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _of_stage(folder, meta["stage"])[:-KEEP]:
        remove_tree(old)
    return final


def latest(folder: Path, stage: str | None = None) -> Path | None:
    """The checkpoint of the highest step of ``stage``, or of the last stage that has one."""
    for name in [stage] if stage else reversed(STAGES):
        found = _of_stage(folder, name)
        if found:
            return found[-1]
    return None


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint; a UserError names the file that is missing, truncated or altered."""
    meta = _read_meta(path)
    for part, expected in meta["sha256"].items():
        file = path / part
        if not file.is_file():
            raise UserError(f"{file}: expected a file, found none")
        found = _digest(file)
        if found != expected:
            raise UserError(f"{file}: expected sha256 {expected[:12]}…, found {found[:12]}… (truncated or altered)")
    try:
        weights = load_file(path / "weights.safetensors")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path / 'weights.safetensors'}: expected a safetensors file, found {one_line(error)}"
        ) from error
    return Checkpoint(path, meta, weights, _read_state(path / "state.pt"))


def load_good(folder: Path, stage: str, note: Callable[[str], None]) -> Checkpoint | None:
    """The latest checkpoint of ``stage`` that is whole; later ones are renamed to ``….damaged``, and ``note`` is told.

    Raises:
        NewerFile: a newer clead wrote the latest one.
    """
    found = _of_stage(folder, stage)
    for path, older in zip(reversed(found), [*reversed(found[:-1]), None], strict=False):
        try:
            return load(path)
        except NewerFile as error:
            instead = f"continue from {older.name}" if older else f"start {stage} again"
            raise NewerFile(f"{error}, or move {path.name} away to {instead}") from error
        except UserError as error:
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists():
                remove_tree(aside)
            path.rename(aside)
            note(f"{error}; {f'continuing from {older.name}' if older else f'starting {stage} again'}")
    return None


def good_before(path: Path) -> Path | None:
    """The latest checkpoint of the same stage before ``path`` that is whole."""
    stage = path.name.rpartition("-")[0]
    for older in reversed([other for other in _of_stage(path.parent, stage) if other.name < path.name]):
        try:
            return load(older).path
        except UserError:
            continue
    return None


def _read_state(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:  # torch stores; an archive that compresses could unpack to any size
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        state = torch.load(file, map_location="cpu", weights_only=True) if stored else None
    except OSError:
        raise
    except Exception as error:  # reading damaged bytes may raise anything
        raise UserError(f"{file}: expected a state of tensors and numbers, found {one_line(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("optimizer"), dict):
        raise UserError(f"{file}: expected the state of an optimiser, found {type(state).__name__}")
    return state


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / "meta.json"
    meta = read_json(file, schema=SCHEMA)
    for key, kind in (("stage", str), ("step", int), ("epoch", int), ("model", dict), ("sha256", dict)):
        if type(meta.get(key)) is not kind:
            raise UserError(f"{file}: expected {key} to be of the type {kind.__name__}, found {meta.get(key)!r:.60}")
    if _name(meta) != path.name:
        raise UserError(f"{file}: expected the stage and the step of {path.name}, found {_name(meta)!r:.60}")
    digests = meta["sha256"]
    if set(digests) != {"weights.safetensors", "state.pt"} or not all(isinstance(it, str) for it in digests.values()):
        raise UserError(f"{file}: expected the sha256 of weights.safetensors and state.pt, found {digests!r:.60}")
    return meta


def _name(meta: dict[str, Any]) -> str:
    return f"{meta['stage']}-{meta['step']:08d}"


def _of_stage(folder: Path, stage: str) -> list[Path]:
    found = [path for path in folder.glob(f"{stage}-*") if path.name.removeprefix(f"{stage}-").isdigit()]
    return sorted(
        (path for path in found if (path / "meta.json").is_file()), key=lambda path: int(path.name.split("-")[-1])
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Make the renaming itself last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
