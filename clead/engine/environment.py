"""Where numbers were computed: what a result needs beside it, and what its last bit depends on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

from clead_kernels import build_info


def environment() -> dict[str, Any]:
    """Commit, versions, device and build: what a number needs beside it."""
    return {
        **_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "build_info": build_info(),
    }


def name_commit(env: Mapping[str, Any]) -> str:
    """``commit 0123456789ab+changes`` of an ``environment``, or of what was saved of one."""
    return f"commit {str(env.get('commit') or 'unknown')[:12]}{'+changes' if env.get('dirty') else ''}"


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What the last bit of training on ``device`` depends on, beside the configuration; as JSON values."""
    on_cuda = device.type == "cuda"
    return {
        "commit": _commit_once(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "kernels": build_info().get("isa", "none"),
        "device": torch.cuda.get_device_name(device) if on_cuda else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def changes(then: object, now: dict[str, Any]) -> str | None:
    """What of a ``fingerprint`` is another one now, in words; None where nothing is."""
    if not isinstance(then, dict):
        return "the environment it was trained in is unknown"
    changed = [name for name, value in now.items() if then.get(name) != value]
    return ", ".join(f"{name} was {str(then.get(name))[:40]} and is {now[name]}" for name in changed) or None


@cache
def _commit_once() -> str | None:
    commit: str | None = _commit()["commit"]
    return commit


def _commit() -> dict[str, Any]:
    """The commit of the checkout this file belongs to; an installed copy may lie inside someone else's."""
    if _git("ls-files", "--error-unmatch", __file__) is None:
        return {"commit": None, "dirty": None}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
