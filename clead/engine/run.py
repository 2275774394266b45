"""The run folder: created once, locked while in use, safe to read at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clead.config import STAGES
from clead.engine.environment import environment
from clead.engine.files import read_json, remove_tree, write_atomic, write_json
from clead.engine.results import Row, add_results, read_results, renamed
from clead.errors import UserError

SCHEMA = 1


class RunFolder:
    """One run on disk, see the README's "What a run folder holds".

    Use as a context manager: it holds the lock, and ``run.json`` says ``running`` inside, then ``done`` or ``failed``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._metrics: IO[bytes] | None = None
        self.observers: list[Callable[[Path, dict[str, Any]], None]] = []

    @classmethod
    def create(cls, path: Path, *, resume: bool, overwrite: bool) -> RunFolder:
        """Claim ``path``; an existing run needs ``resume`` or ``overwrite``."""
        used = cls.check(path, resume=resume, overwrite=overwrite)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder._acquire()
        folder._tidy()
        if used and overwrite:
            folder._clear()
        return folder

    @staticmethod
    def check(path: Path, *, resume: bool, overwrite: bool) -> bool:
        """Refuse a ``path`` that ``create`` would; returns whether there is a run in it."""
        if not str(path).isprintable():
            raise UserError(f"{str(path)!a}: expected a folder name of printable UTF-8 characters")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: expected a folder for the run, found a file")
        used = path.is_dir() and any(path.iterdir())
        if used and not (path / "config.json").is_file() and not (path / ".lock").is_file():
            raise UserError(f"{path}: expected an empty folder or a run folder, found other files")
        if used and not (resume or overwrite):
            raise UserError(f"{path}: the run folder exists; pass --resume, --overwrite or another --out")
        return used

    def _acquire(self) -> None:
        lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the run ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UserError(f"{self.path}: the run folder is in use by another process") from error
        self._lock = lock

    def _tidy(self) -> None:
        """Remove what a killed process left."""
        for leftover in list(self.path.rglob(".tmp-*")):
            if "comparisons" in leftover.relative_to(self.path).parts:  # those have a lock of their own
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Delete the run; what a killed process leaves of it is a run that was begun with the old configuration."""
        order = {"run.json": 0, "config.json": 2}
        for child in sorted(self.path.iterdir(), key=lambda child: order.get(child.name, 1)):
            if child.is_dir():
                remove_tree(child)
            elif child.name != ".lock":
                child.unlink()

    @contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Hold the lock without touching ``run.json``, to add results to a run that is not being trained."""
        self._acquire()
        try:
            if self.config_file.is_file():  # else it is someone's folder, in which only the results are ours
                self._tidy()
            yield self
        finally:
            self.close()

    def __enter__(self) -> RunFolder:
        try:
            self._set_state("running")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._set_state("done" if kind is None else "failed")
        except OSError:
            if kind is None:
                raise  # otherwise the first error is the one to show
        finally:
            self.close()

    def close(self) -> None:
        """Release the lock and the metrics file."""
        for file in (self._metrics, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._lock = None

    # config and environment

    @property
    def name(self) -> str:
        """The folder's own name, also where the path to it is ``.`` or a link."""
        return self.path.resolve().name

    @property
    def config_file(self) -> Path:
        """``config.json``."""
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def stages(self) -> list[str]:
        """Stages that are finished."""
        file = self.path / "run.json"
        if not file.exists():
            return []
        stages = read_json(file, schema=SCHEMA).get("stages")
        if not isinstance(stages, list) or not all(stage in STAGES for stage in stages):
            raise UserError(f"{file}: expected under stages a list of {', '.join(STAGES)}, found {stages!r}")
        return stages

    def finish_stage(self, stage: str) -> None:
        """Record that ``stage`` is finished."""
        done = self.stages
        if stage not in done:
            self._set_state("running", [*done, stage])

    def _set_state(self, state: str, stages: list[str] | None = None) -> None:
        stages = self.stages if stages is None else stages
        write_json(self.path / "run.json", {"schema": SCHEMA, "state": state, "stages": stages})

    def write_config(self, method: str, recipe: str, values: dict[str, Any]) -> None:
        """Write ``config.json``, and ``env.json`` where there is none: it tells where the training was begun."""
        if not (self.path / "env.json").exists():
            write_json(self.path / "env.json", {"schema": SCHEMA, **environment()})
        write_json(self.config_file, {"schema": SCHEMA, "method": method, "recipe": recipe, "values": values})

    # metrics

    def log(self, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``, and tell the observers."""
        file = self.path / "metrics.jsonl"
        line = (json.dumps(values, allow_nan=False) + "\n").encode()
        try:
            if self._metrics is None:
                # Unbuffered: what a full disk refused is not tried again when the file is closed.
                self._metrics = open(file, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            while line:
                line = line[self._metrics.write(line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from error
        for observer in self.observers:
            observer(self.path, values)

    def sync_metrics(self) -> None:
        """Flush the metrics to disk, so that a checkpoint is never ahead of them, even after a loss of power."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Forget what was logged after ``step`` of ``stage``, before training continues from there.

        All stages depend on the pre-training, and no other two on one another: they may be done in any order.
        """
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return
        if self._metrics is not None:  # the file is about to be replaced
            self._metrics.close()
            self._metrics = None
        kept = []
        lines = [line for line in file.read_bytes().split(b"\n") if line.strip()]
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                of, at = STAGES.index(entry["stage"]), entry["step"]
                kept_line = at <= step if of == STAGES.index(stage) else stage != "pretrain"
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if number == len(lines):
                    continue  # the line a crash cut short
                raise UserError(
                    f"{file}: expected an object with stage and step on line {number}, found {line[:40]!r}"
                ) from error
            if kept_line:
                kept.append(line + b"\n")
        write_atomic(file, b"".join(kept))

    # results

    @property
    def results(self) -> list[Row]:
        """All rows so far, under the name that the folder has now."""
        return [renamed(row, self.name) for row in read_results(self.path / "results.json")]

    def add_results(self, rows: list[Row]) -> None:
        """Add rows; one with the key of an older row replaces it."""
        add_results(self.path / "results.json", rows, self.name)
