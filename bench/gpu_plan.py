"""What ``bench.gpu`` does, in order: what tells most comes first, since a run may end before its last step."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import ROOT
from .grids import PARTS

MARGIN = 1.5
"""Minutes that a measuring step may take beyond those it is given: it ends with the case it is at."""
LARGEST = "262144"
"""Rows of a loss: of more, one sample takes longer than the others' minutes, and each has a step of its own."""
WORKERS = 16
"""Processes of GPU tests at once, at most: they compile most of the time, and what a bad kernel breaks is one's own."""


@dataclass(frozen=True)
class Step:
    """One command; ``skip`` says why it is not run.

    ``minutes`` is the most it may take, ``least`` what must be left to begin it. ``measures``: it is told by
    ``--minutes`` to begin nothing in the last ``MARGIN`` of them.
    """

    name: str
    command: list[str]
    minutes: float
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""
    least: float = 0.5
    measures: bool = False

    def within(self, minutes: float) -> Step:
        """The step where so many minutes are left."""
        if self.skip or minutes >= self.minutes:
            return self._told(self.minutes)
        if minutes < self.least:
            return replace(self, skip=NO_TIME)
        return self._told(minutes)

    def _told(self, minutes: float) -> Step:
        told = ["--minutes", f"{max(0.1, minutes - MARGIN):.3g}"] if self.measures else []
        return replace(self, minutes=minutes, command=[*self.command, *told])


NO_TIME = "no time left"
INSTALL = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]


def steps(options: argparse.Namespace, out: Path, cuda: bool) -> list[Step]:
    """What is to be done, in order."""
    python, pytest = (
        sys.executable,
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-W", "default", "--durations=10"],
    )
    no_device = "" if cuda else "no CUDA device"
    here = "cuda" if cuda else "cpu"

    def tests(name: str, marks: str, files: list[str], minutes: float, **more: Any) -> Step:
        command = [*pytest, *side_by_side(), "-m", marks, f"--junitxml={out}/{name}.xml", *files]
        return Step(name, command, minutes, least=1.0, **more)

    site = out.parent / f"{out.name}-site"
    path = {"PYTHONPATH": search_path(site)} if options.wheels else {}
    found = by_step(marked("kernels", "gpu"))
    gpu_tests = [tests(name, "gpu and kernels", files, 4, skip=no_device) for name, files in found.items()]
    measured = {step.name: step for step in measuring(options, out, here, no_device, path)}
    first = [measured.pop(name) for name in ("bench-quick", "bench-goals", "bench-loss") if name in measured]
    last = [measured.pop(name) for name in list(measured) if name.startswith(("bench-compile", "bench-million"))]
    plan = [
        Step("nvidia-smi", ["nvidia-smi", "-q"], 0.5, skip=no_device),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 6),
        Step("explain", [python, "-c", EXPLAIN, here], 1),
        *gpu_tests[:-1],
        *first,
        gpu_tests[-1],
    ]
    if options.wheels:
        wheels = [str(wheel) for wheel in sorted(options.wheels.glob("*.whl"))]
        install = [python, *INSTALL, "--target", str(site), *wheels]
        training = [file for file in marked("gpu") if file not in marked("kernels")]
        plan.append(Step("wheels", install, 2))
        plan.append(tests("test-training", "gpu", training, 4, environment=path, skip=no_device))
    plan += [*measured.values(), *last, tests("test-cpu", CPU_TESTS, marked("kernels"), 6)]
    return [step for step in plan if not options.only or step.name in options.only]


def measuring(options: argparse.Namespace, out: Path, device: str, no_device: str, path: dict[str, str]) -> list[Step]:
    """The steps that measure; one that is cut short has the cheap cases. ``path`` finds the wheels."""
    if options.minutes <= 0:
        return []
    plan = []

    def add(name: str, arguments: list[str], skip: str = "", minutes: float = options.minutes) -> None:
        rows = ["--json", str(out / f"{name}.json")] if arguments[0] not in ("tune", "goals") else []
        where = ["--device", device] if arguments[0] != "tune" else []
        command = [sys.executable, "-m", "bench", *arguments, *where, *rows, "--csv", str(out / "results")]
        plan.append(Step(name, command, minutes + MARGIN, path, skip, 1.0 + MARGIN, measures=True))

    wanted = options.parts or [*PARTS, "steps"]
    parts = [part for part in wanted if part != "steps"]
    if parts:
        add("bench-quick", [*parts, "--quick"], minutes=min(options.minutes, 1.0))
    if set(parts) == set(PARTS):
        add("bench-goals", ["goals", "--measure", "--rows", LARGEST], no_device)
    for part in parts:
        add(f"bench-{part}", [part, "--skip", "compile,compile_graph", "--rows", LARGEST])
    if "loss" in parts:
        add("tune", ["tune"], no_device)
    if "steps" in wanted:
        add("bench-steps", ["steps"], no_device or ("" if path else _absent("tyro", "safetensors", "sklearn")))
    if parts:
        add("bench-compile", [*parts, "--impl", "compile,compile_graph", "--rows", "65536"])
    if "loss" in parts:
        for op in ("nt_xent", "sup_con"):
            million = ["loss", "--case", f"{op}/n1048576", "--impl", "triton", "--clock", "graph"]
            add(f"bench-million-{op}", million, no_device)
    return plan


def side_by_side() -> list[str]:
    """Options of pytest for several processes and an end to each test, where its plugins are there."""
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if find_spec("xdist") else []
    return [*workers, *(["--timeout", "180"] if find_spec("pytest_timeout") else [])]


def _absent(*packages: str) -> str:
    """Why a step cannot run that needs these packages; empty if it can."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"needs {', '.join(missing)}" if missing else ""


CPU_TESTS = "kernels and not gpu and not slow"
EXPLAIN = """
import sys, clead_kernels
built, device = clead_kernels.build_info(), sys.argv[1]
print(built, clead_kernels.explain(device=device), sep="\\n")
if not built or device == "cuda" and built["cuda"] == "none":
    sys.exit("there are no native kernels for this device: see build.log")
"""


def search_path(*more: Path) -> str:
    """This checkout before whatever the caller's PYTHONPATH has."""
    return os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels"), *map(str, more), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def by_step(files: list[str]) -> dict[str, list[str]]:
    """The files of every step of GPU tests, the shortest first, that of the rarest kernels last."""
    steps: dict[str, list[str]] = {"test-gpu-small": [], "test-gpu": [], "test-gpu-forms": []}
    for file in files:
        name = f"test-gpu-{Path(file).stem.rpartition('_')[2]}"
        steps[name if name in steps else "test-gpu"].append(file)
    return steps


def marked(*marks: str) -> list[str]:
    """Test files with all these marks: the others need packages that are not here, and fail when collected."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if all(f"mark.{mark}" in file.read_text() for mark in marks)]
