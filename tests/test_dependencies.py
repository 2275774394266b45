"""Nothing needs more than it says: optional libraries may be absent, and there is no network."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "pytest-benchmark": "pytest_benchmark"}
BUILD_ONLY = {"torch", "setuptools", "ruff", "mypy"}  # torch imports setuptools itself, where it is there

# A small training, an evaluation, a report and the doctor; sys.argv[1:] cannot be imported, and no host be reached.
WITHOUT = """
import importlib, pkgutil, socket, sys, tempfile

def refuse(*arguments, **options):
    raise AssertionError(f"network: {arguments}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import clead, clead_kernels
for package in (clead, clead_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        last = module.name.rpartition(".")[2]
        if last not in ("__main__", "_C") and not last.lstrip("_").startswith("triton"):
            importlib.import_module(module.name)
from clead import report, train
from clead.doctor.install import examine
from clead.evaluate.command import main as evaluate
out = tempfile.mkdtemp() + "/run"
few = ["--epochs", "1", "--batch-size", "100", "--train-samples", "300", "--linear-eval.epochs", "1"]
train.main(["simclr", *few, "--evaluation.samples", "20", "--evaluation.attacks", "fgsm", "--out", out])
evaluate([out, "--attacks", "pgd2", "--eps", "0.1", "--samples", "20"])
report.main([out])
assert not [finding for finding in examine() if finding.state == "broken"]
print("all done")
"""
KERNELS_ALONE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import torch
from clead_kernels import info_nce
print(float(info_nce(torch.eye(2), torch.eye(2), temperature=1.0)))
"""


def modules(requirements):
    names = [Requirement(line).name for line in requirements]
    return [IMPORTED_AS.get(name, name) for name in names if name not in BUILD_ONLY]


OPTIONAL = sorted({*modules(sum(PROJECT["optional-dependencies"].values(), [])), "torchvision", "tensorboard"})


def run(code, *blocked):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", code, *blocked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_works_without_any_optional_library_and_without_a_network():
    assert "triton" in OPTIONAL and "pyautoattack" in OPTIONAL
    assert run(WITHOUT, *OPTIONAL).endswith("all done\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONAL)
def test_everything_works_without_one_optional_library(name):
    assert run(WITHOUT, name).endswith("all done\n")


def test_the_kernels_need_torch_and_numpy_only():
    blocked = [*OPTIONAL, *(name for name in modules(PROJECT["dependencies"]) if name != "numpy")]
    assert float(run(KERNELS_ALONE, *blocked)) == pytest.approx(0.3132617, abs=1e-6)


def test_every_dependency_has_a_reason():
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    asked = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    missing = {Requirement(line).name for line in asked if f"`{Requirement(line).name}`" not in text}
    assert missing == set()
