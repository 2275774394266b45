"""``cp -r kernels/clead_kernels`` into another project works, alone and beside an installed clead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clead_kernels
from clead_kernels import _native

pytestmark = pytest.mark.kernels

SOURCE = Path(clead_kernels.__file__).parent
# Losses of four orthogonal rows: log 3 - 0, whatever the temperature. Then the step of each perturbation.
USE = """
import importlib, sys, torch

def use(package):
    rows = torch.eye(4, requires_grad=True)
    losses = [package.nt_xent(rows), package.nt_xent(rows, impl="reference")]
    losses.append(importlib.import_module(package.__name__ + ".compat.lightly").NTXentLoss()(rows[:2], rows[2:]))
    sum(losses).backward()
    x_adv = package.pgd_step_(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2), eps=0.5, step_size=0.25)
    _, best = package.similarity_topk(torch.eye(3), torch.eye(3), 1)
    print(package.__name__, [round(x.item(), 4) for x in losses], x_adv.tolist(), best.flatten().tolist())
    print(bool(package.build_info()))
"""
RESULT = "[1.0986, 1.0986, 1.0986] [[0.25, 0.25]] [0, 1, 2]"
NATIVE = str(_native.available())


def copy(folder: Path, *, native: bool = True) -> Path:
    """The package under another name, as ``cp -r`` makes it; without ``native``, as from a clone without a compiler."""
    skipped = ["__pycache__"] if native else ["__pycache__", "*.so"]
    return Path(shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns(*skipped)))


def run(script: str, *paths: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, paths))}
    command = [sys.executable, "-c", USE + script]
    result = subprocess.run(command, env=environment, cwd=paths[0], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_copy_in_an_empty_project(tmp_path):
    """Inside a package, under another name, where no clead can be imported."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "__init__.py").touch()
    copy(tmp_path / "project" / "fused")
    script = """
sys.modules["clead"] = sys.modules["clead_kernels"] = None
import pkgutil, project.fused
for module in pkgutil.walk_packages(project.fused.__path__, "project.fused."):
    if "triton" not in module.name:  # Triton need not be installed
        importlib.import_module(module.name)
use(project.fused)
"""
    assert run(script, tmp_path) == [f"project.fused {RESULT}", NATIVE]


@pytest.mark.parametrize("native", [True, False], ids=["built", "pure Python"])
@pytest.mark.parametrize("order", ["clead_kernels, vendored", "vendored, clead_kernels"])
def test_a_copy_beside_an_installed_one(tmp_path, order, native):
    """The second takes over, and both work after that."""
    copy(tmp_path / "vendored", native=native)
    script = f"import {order}\nuse(clead_kernels), use(vendored), use(clead_kernels)"
    installed, vendored = [f"clead_kernels {RESULT}", NATIVE], [f"vendored {RESULT}", NATIVE if native else "False"]
    assert run(script, tmp_path, SOURCE.parent) == [*installed, *vendored, *installed]


def test_a_copy_with_other_schemas_is_refused_and_leaves_no_trace(tmp_path):
    """One sentence, each time; the ops that it had taken over before go back to the installed ones."""
    altered = copy(tmp_path / "altered", native=False)
    for file, text, other in [
        ("similarity/ops.py", "similarity_topk(Tensor queries", "similarity_topk(Tensor query"),
        ("contrastive/reference_forms.py", "softplus(n - p)", "softplus(n - p + 1)"),
    ]:
        assert text in (altered / file).read_text()
        (altered / file).write_text((altered / file).read_text().replace(text, other))
    script = """
import clead_kernels
for _ in range(2):
    try:
        import altered
    except ImportError as error:
        print(error)
use(clead_kernels)
"""
    first, second, *rest = run(script, tmp_path, SOURCE.parent)
    assert first.startswith("another copy of clead_kernels defined clead::similarity_topk(Tensor queries")
    assert "this one needs clead::similarity_topk(Tensor query," in first and second == first
    assert rest == [f"clead_kernels {RESULT}", NATIVE]
