"""The Triton kernels on the CPU, in child processes: Triton must be told before its first import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter")]
pytest.importorskip("triton")

HERE = Path(__file__).parent
# "auto" takes Triton wherever it can.
PREFER = """
import sys, pytest
from clead_kernels import dispatch
dispatch.SUPPORT = tuple(sorted(dispatch.SUPPORT, key=lambda row: row.impl != "triton"))
dispatch._ROWS = {op: tuple(row for row in dispatch.SUPPORT if row.op == op) for op in dispatch.OPS}
sys.exit(pytest.main(sys.argv[1:]))
"""


def run(*arguments: str, **variables: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / "kernels"), os.environ.get("PYTHONPATH", "")])
    # NumPy, which interprets, warns where inf and nan arise that a select discards.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "--rootdir", str(HERE.parents[1])]
    child = subprocess.run(
        [sys.executable, *arguments, *options], env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert child.returncode == 0, f"{child.stdout[-6000:]}\n{child.stderr[-2000:]}"
    assert " passed" in child.stdout


def test_numerics() -> None:
    run("-m", "pytest", str(HERE / "triton_interpreted.py"), FEW_ROWS="0")


def test_numerics_of_shares() -> None:
    """Several programs for the same rows, put together: without and with an offset per row."""
    some = "test_float32 and (nt_xent-0.05 or sets-0.005) or test_half and info_nce and bfloat16"
    run("-m", "pytest", str(HERE / "triton_interpreted.py"), "-k", some, FEW_ROWS="0", SHARED="1")


def test_numerics_for_few_rows() -> None:
    run("-m", "pytest", str(HERE / "triton_small_interpreted.py"))
    run("-m", "pytest", str(HERE / "triton_interpreted.py"), "-k", "test_false_negatives")


def test_numerics_of_augmentation() -> None:
    run("-m", "pytest", str(HERE / "triton_augment_interpreted.py"))


def test_numerics_of_similarity() -> None:
    run("-m", "pytest", str(HERE / "triton_similarity_interpreted.py"))


def test_trials_find_the_kernels_right() -> None:
    run("-m", "pytest", str(HERE / "test_trial.py"), "-k", "right_kernels and float32 or no_trace")


@pytest.mark.slow
def test_the_rest_of_the_numerics() -> None:
    for name in ("triton_similarity_interpreted.py", "triton_augment_interpreted.py"):
        run("-m", "pytest", str(HERE / name), "-m", "slow")
    run("-m", "pytest", str(HERE / "triton_interpreted.py"), "-m", "slow", FEW_ROWS="0")
    run("-m", "pytest", str(HERE / "triton_interpreted.py"), FEW_ROWS="0", SHARED="1")
    for name in ("triton_interpreted.py", "triton_small_interpreted.py"):
        run("-m", "pytest", str(HERE / name), "-m", "slow or not slow")
    run("-m", "pytest", str(HERE / "test_trial.py"))


@pytest.mark.slow
def test_every_test_of_the_family_passes_on_triton() -> None:
    """Except where a test reads the reference's own decision at a threshold, or expects no Triton on a CPU."""
    names = ("test_contrastive.py", "test_contrastive_numerics.py", "test_contrastive_interface.py")
    run(
        "-c", PREFER, *(str(HERE / name) for name in names), "-k", "not above_the_threshold_by_rounding and not bad_arg"
    )


def test_importing_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import clead_kernels; "
    code += "print(clead_kernels.explain('nt_xent', device='cuda'))"
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1] / "kernels")}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "absent here: Triton is not installed" in child.stdout
