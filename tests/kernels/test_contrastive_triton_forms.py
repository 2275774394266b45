"""The forms in Triton on the CPU, in child processes: Triton must be told before its first import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter")]
pytest.importorskip("triton")

HERE = Path(__file__).parent


def run(which: str, *options: str, **variables: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / "kernels"), os.environ.get("PYTHONPATH", "")])
    # NumPy, which interprets, warns where inf and nan arise that a select discards.
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "--rootdir", str(HERE.parents[1])]
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(HERE / "test_gpu_contrastive_forms.py"),
        "-m",
        which,
        *quiet,
        *options,
    ]
    child = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert child.returncode == 0, f"{child.stdout[-6000:]}\n{child.stderr[-2000:]}"
    assert " passed" in child.stdout


def test_numerics() -> None:
    run("gpu and not slow")


def test_numerics_of_shares() -> None:
    """Several programs for the same rows, put together."""
    run("gpu and not slow", "-k", "test_forms_with_every_rule and (own or spread)", SHARED="1")


@pytest.mark.slow
def test_the_rest_of_the_numerics() -> None:
    run("gpu and slow")
    run("gpu and not slow", SHARED="1")
