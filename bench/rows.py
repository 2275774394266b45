"""Rows: where they were measured, and how they are written and read."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import clead_kernels

from . import ROOT

Row = dict[str, Any]

COLUMNS = (
    *("op", "case", "impl", "mode", "p50_ms", "p20_ms", "p80_ms", "min_ms", "samples"),
    *("ratio_to_eager", "ratio_to_eager_fp32", "ratio_to_line", "peak_mb", "value_error", "grad_error"),
    *("reason", "kind", "auto", "dtype", "rows", "columns", "dim", "temperature", "flops", "bytes", "clock"),
    *("executed", "of_products", "of_copy", "copy_rate", "product_rate", "exp_rate", "note"),
    *("device", "threads", "isa", "load", "python", "torch", "triton", "native", "cuda", "driver"),
    *("commit", "dirty", "date", "command"),
)
"""What every row has; empty where it has no meaning. ``peak_mb`` and errors are of the whole sample, not of a mode.

``flops`` and ``bytes`` are those that the case needs, ``executed`` the operations that the implementation runs. Rates
are those of the machine in the same run, per second; ``of_products`` and ``of_copy`` the parts of them achieved.
"""


def environment(device: str, threads: int) -> Row:
    """What is the same in all rows of a run: machine, versions, commit."""
    build = clead_kernels.build_info()
    commit = _output("git", "rev-parse", "--short=12", "HEAD") or os.environ.get("CLEAD_COMMIT", "unknown")
    row: Row = {
        "threads": threads,
        "isa": "+".join(filter(None, [torch.backends.cpu.get_cpu_capability(), build.get("isa", "")])),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "native": "; ".join(f"{key} {value}" for key, value in build.items()) or "absent",
        "commit": commit,
        "dirty": bool(_output("git", "status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": _processor(),
        "cuda": torch.version.cuda or "",
        "driver": "",
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        row |= {"device": torch.cuda.get_device_name(), "isa": f"sm_{major}{minor}", "threads": threads}
        row["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return row


def slug(device: str) -> str:
    """A folder's name for a device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def append_csv(folder: Path, rows: list[Row]) -> list[Path]:
    """Append each row to ``folder/<device>/<op>.csv``.

    Raises:
        ValueError: a file there has other columns.
    """
    files: dict[Path, list[Row]] = {}
    for row in rows:
        files.setdefault(folder / slug(str(row["device"])) / f"{row['op']}.csv", []).append(row)
    for path in files:  # all are looked at before one is written
        if path.exists() and (found := _header(path)) != list(COLUMNS):
            odd = sorted(set(found) ^ set(COLUMNS)) or ["their order"]
            raise ValueError(f"{path} has other columns than this version writes ({', '.join(odd)}): move it away")
    for path, some in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in some)
    return list(files)


def write_json(path: Path, rows: list[Row]) -> None:
    """Write a list of rows, one a line, in one piece."""
    partial = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    partial.replace(path)


def read(path: Path) -> list[Row]:
    """Rows of a CSV or JSON file, or of all CSV files below a folder; numbers are floats again.

    Raises:
        ValueError: not such a file, or no rows in it.
    """
    if path.is_dir():
        rows = [row for file in sorted(path.rglob("*.csv")) for row in read(file)]
    elif path.suffix == ".json":
        rows = json.loads(path.read_text())
    else:
        with path.open(newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    needed = {"op", "case", "impl", "mode", "p50_ms"}
    if not rows or not needed <= rows[0].keys():
        raise ValueError(f"{path} holds no rows of a benchmark: they have {', '.join(sorted(needed))}")
    return [{key: _number(value) if key.endswith("_ms") else value for key, value in row.items()} for row in rows]


def _header(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _number(value: Any) -> float | None:
    return None if value in ("", None) else float(value)


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _text(Path("/proc/cpuinfo")))
    return (found[1].strip() if found else platform.processor()) or platform.machine()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _version(module: str) -> str:
    if find_spec(module) is None:
        return ""
    return str(getattr(__import__(module), "__version__", "?"))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
