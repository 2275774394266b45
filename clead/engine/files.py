"""Writing files so that a reader sees the old or the new content, never half of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from clead.errors import NewerFile, UserError, one_line

LARGEST_JSON = 1 << 26  # 64 MiB; ours have some hundred kB


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary neighbour, flush it to disk and rename it over ``path``, which errors name."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` and flush it to disk; an OSError names the file, which Python's own leaves out on a full disk."""
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, written atomically; NaN is refused."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, *, schema: int) -> dict[str, Any]:
    """A JSON object with ``"schema": schema``; a UserError names the file otherwise."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise UserError(f"{path}: expected JSON of at most {LARGEST_JSON:,} bytes, found more")
        value = json.loads(content)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file, found none") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, found {one_line(error)}") from error
    if isinstance(value, dict) and type(value.get("schema")) is int and value["schema"] > schema:
        raise NewerFile(
            f"{path}: expected schema {schema}, found {value['schema']}: a newer clead wrote it; update clead"
        )
    if not isinstance(value, dict) or value.get("schema") != schema:
        found = f"{value.get('schema')!r:.60}" if isinstance(value, dict) else type(value).__name__
        raise UserError(f"{path}: expected an object with schema {schema}, found {found}")
    return value


def remove_tree(path: Path) -> None:
    """Delete a folder; renamed first, so that an interruption leaves no half-deleted folder under its name.

    Of a link to a folder, only the link.
    """
    if path.is_symlink():
        path.unlink()
        return
    grave = path.with_name(f".tmp-old-{path.name}")
    shutil.rmtree(grave, ignore_errors=True)
    path.rename(grave)
    shutil.rmtree(grave)
