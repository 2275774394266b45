"""What ``bench.gpu`` does, in order: each step ends by itself within eight minutes, most of them sooner."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from . import ROOT
from .grids import PARTS


@dataclass(frozen=True)
class Step:
    """One command; ``skip`` says why it is not run."""

    name: str
    command: list[str]
    minutes: float
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""


def steps(options: argparse.Namespace, out: Path, cuda: bool) -> list[Step]:
    """What is to be done, in order."""
    python, pytest = sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    tests, gpu_tests = marked("kernels"), marked("kernels", "gpu")
    no_device = "" if cuda else "no CUDA device"
    device = ["--device", "cuda" if cuda else "cpu"]

    def results(name: str) -> list[str]:
        return ["--json", str(out / f"{name}.json"), "--csv", str(out / "results")]

    bench = [python, "-m", "bench", *device]
    plan = [
        Step("nvidia-smi", ["nvidia-smi", "-q"], 1, skip=no_device),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 8),
        Step("explain", [python, "-c", EXPLAIN, "cuda" if cuda else "cpu"], 2),
        *(
            Step(name, [*pytest, "-m", "gpu and kernels", f"--junitxml={out}/{name}.xml", *files], 8, skip=no_device)
            for name, files in by_step(gpu_tests).items()
        ),
        Step("test-cpu", [*pytest, "-m", CPU_TESTS, f"--junitxml={out}/test-cpu.xml", *tests], 8),
    ]
    path: dict[str, str] = {}
    if options.wheels:
        site = out.parent / f"{out.name}-site"
        install = [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            str(site),
        ]
        wheels = [str(wheel) for wheel in sorted(options.wheels.glob("*.whl"))]
        path = {"PYTHONPATH": search_path(site)}
        training = [*pytest, "-m", "gpu", f"--junitxml={out}/test-training.xml", "tests"]
        plan.append(Step("wheels", [*install, *wheels], 3))
        plan.append(Step("test-training", training, 10, path, skip=no_device))
    plan += measuring(options, bench, results, out, no_device, path)
    return [step for step in plan if not options.only or step.name in options.only]


def measuring(
    options: argparse.Namespace,
    bench: list[str],
    results: Callable[[str], list[str]],
    out: Path,
    no_device: str,
    path: dict[str, str],
) -> list[Step]:
    """The steps that measure; one that is cut short has the cheap cases. ``path`` finds the wheels."""
    if options.minutes <= 0:
        return []
    share, plan = min(5.0, options.minutes), []

    def add(name: str, arguments: list[str], minutes: float, skip: str = "") -> None:
        limit = ["--minutes", f"{minutes:.3g}"]
        plan.append(Step(name, [*bench, *arguments, *results(name), *limit], minutes + 3, path, skip))

    wanted = options.parts or [*PARTS, "steps"]
    parts = [part for part in wanted if part != "steps"]
    if parts:
        add("bench-quick", [*parts, "--quick"], min(share, 1.0))
    for part in parts:
        # Above a quarter of a million rows one sample takes longer than the others' minutes.
        add(f"bench-{part}", [part, "--skip", "compile,compile_graph", "--rows", "262144"], share)
    if parts:
        add("bench-compile", [*parts, "--impl", "compile,compile_graph", "--rows", "65536"], share)
    if "loss" in parts:
        million = ["loss", "--case", "nt_xent/n1048576", "--impl", "triton", "--clock", "graph"]
        add("bench-million", million, share, no_device)
        tune = [*bench[:3], "tune", "--minutes", f"{share:.3g}", "--csv", str(out / "results")]
        plan.append(Step("tune", tune, share + 3, path, no_device))
    if "steps" in wanted:
        absent = no_device or ("" if path else _absent("tyro", "safetensors", "sklearn"))
        add("bench-steps", ["steps"], share, absent)
    return plan


def _absent(*packages: str) -> str:
    """Why a step cannot run that needs these packages; empty if it can."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"needs {', '.join(missing)}" if missing else ""


CPU_TESTS = "kernels and not gpu and not slow"
EXPLAIN = "import sys, clead_kernels as k; print(k.build_info()); print(k.explain(device=sys.argv[1]))"


def search_path(*more: Path) -> str:
    """This checkout before whatever the caller's PYTHONPATH has."""
    return os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels"), *map(str, more), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def by_step(files: list[str]) -> dict[str, list[str]]:
    """The files of every step of GPU tests: those that compile most kernels have a step, and its time, each."""
    steps: dict[str, list[str]] = {"test-gpu": []}
    for file in files:
        what = Path(file).stem.rpartition("_")[2]
        steps.setdefault(f"test-gpu-{what}" if what in ("small", "forms") else "test-gpu", []).append(file)
    return steps


def marked(*marks: str) -> list[str]:
    """Test files with all these marks: the others need packages that are not here, and fail when collected."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if all(f"mark.{mark}" in file.read_text() for mark in marks)]
