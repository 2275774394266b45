"""What is installed: clead, clead_kernels and its extension, and no top-level ``kernels``, ``tests`` or ``bench``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from clead_kernels import _native

ROOT = Path(__file__).resolve().parents[1]
WARNING = "warning: no native kernels ({}); to build them: pip install --no-build-isolation -e ."


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources; objects compiled before are taken along, so that building is quick."""
    copy, skipped = tmp_path / "clead", shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    copy.mkdir()
    for folder in ("clead", "kernels", "csrc", "build/objects"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, copy / folder, ignore=skipped)
    for folder in ("tests", "bench"):  # with __init__.py, the classic way for them to be installed
        (copy / folder).mkdir()
        (copy / folder / "__init__.py").touch()
    for file in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    ):
        shutil.copy2(ROOT / file, copy)
    return copy


def build(checkout, *command, **env):
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", *command, "--dist-dir", "dist"],
        cwd=checkout,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (archive,) = (checkout / "dist").iterdir()
    return archive, result.stderr


def top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    return {name.split("/")[0] for name in names if ".dist-info" not in name}, names


def test_kernels_is_a_source_root_and_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_setup_py_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 100


@pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")
def test_wheel_holds_both_packages_and_the_extension(checkout):
    wheel, warnings = build(checkout, "bdist_wheel", CLEAD_CUDA="0")
    top, names = top_level(wheel)
    assert top == {"clead", "clead_kernels"}
    assert "clead_kernels/perturb/reference.py" in names and "clead/train.py" in names
    assert sum(name.startswith("clead_kernels/_C.") for name in names) == 1
    assert "warning: no native kernels" not in warnings


@pytest.mark.parametrize(
    ("env", "reason"),
    [({"CLEAD_NATIVE": "0"}, "CLEAD_NATIVE=0"), ({"CXX": "no-such-compiler"}, "no no-such-compiler")],
    ids=["switched off", "no compiler"],
)
def test_pure_python_wheel_with_one_plain_warning(checkout, env, reason):
    wheel, warnings = build(checkout, "bdist_wheel", **env)
    top, names = top_level(wheel)
    assert wheel.name.endswith("-py3-none-any.whl") and top == {"clead", "clead_kernels"}
    assert "clead_kernels/compat/lightly.py" in names and not any("examples" in name for name in names)
    assert not any("_C" in name for name in names)
    assert [line for line in warnings.splitlines() if "native" in line] == [WARNING.format(reason)]


def test_source_distribution_can_build_the_extension(checkout):
    archive, _ = build(checkout, "sdist", CLEAD_NATIVE="0")
    with tarfile.open(archive) as contents:
        names = {name.partition("/")[2] for name in contents.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert sources <= names and "kernels/clead_kernels/__init__.py" in names


def test_constraints_pin_what_the_metadata_asks_for():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name]), f"constraints.txt pins {name}=={pinned[name]}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")
def test_cuda_sources_compile_and_the_module_loads_without_cuda(checkout):
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=checkout,
        env=os.environ | {"CLEAD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    code = (
        "import torch, clead_kernels._native as n; print(n.build_info()['cuda']); "
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('clead::pgd_step_linf_', 'CUDA'))"
    )
    env = os.environ | {"PYTHONPATH": str(checkout / "kernels")}
    loaded = subprocess.run([sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True)
    assert loaded.stdout.split("\n")[:2] == ["8.0 9.0+PTX", "True"], loaded.stderr
