"""What an installation has and lacks. Only the standard library is imported before it is known to be there."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from clead.errors import one_line

INSTALL = f"{sys.executable} -m pip install"
BUILD = f"{INSTALL} --no-build-isolation -e ."
MODULES = {  # distribution -> what is imported of it
    "numpy": "numpy",
    "packaging": "packaging.version",
    "safetensors": "safetensors.torch",
    "scikit-learn": "sklearn.datasets",
    "scipy": "scipy.ndimage",
    "pillow": "PIL.Image",
    "tyro": "tyro",
    "rich": "rich.console",
    "matplotlib": "matplotlib.figure",
    "pooch": "pooch",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        state: ``fine``; ``note``, clead works without it; ``broken``, it does not.
        what: in words.
        mend: the command that changes it.
    """

    state: Literal["fine", "note", "broken"]
    what: str
    mend: str | None = None


def examine() -> list[Finding]:
    """Everything, in the order in which it would have to be mended."""
    return [finding for check in CHECKS for finding in check()]


def load(name: str) -> ModuleType | str:
    """The module, or why it cannot be imported, in one line."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken library may raise anything while it is imported
        return f"{type(error).__name__}: {one_line(error)}"


def check_python() -> Iterator[Finding]:
    """Version and platform; that the version is new enough was checked when clead was installed."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        yield Finding("note", f"{found}; clead is tested on Linux only")
    else:
        yield Finding("fine", found)


def check_torch() -> Iterator[Finding]:
    """Whether torch imports, and is new enough."""
    torch = load("torch")
    if isinstance(torch, str):
        yield Finding("broken", f"torch does not import: {torch}", f"{INSTALL} --force-reinstall 'torch>=2.11'")
        return
    if release(torch.__version__) < (2, 11):
        yield Finding("broken", f"torch {torch.__version__}; clead needs 2.11", f"{INSTALL} --upgrade 'torch>=2.11'")
        return
    yield Finding("fine", f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if torch.version.cuda is None:
        nvidia = shutil.which("nvidia-smi") is not None
        mend = f"{INSTALL} --force-reinstall torch" if nvidia else None
        yield Finding("note", f"torch is a CPU build{', though this machine has an NVIDIA driver' * nvidia}", mend)
    elif not torch.cuda.is_available():
        yield Finding("note", f"torch is built for CUDA {torch.version.cuda}, but finds no device; see nvidia-smi")
    else:
        yield Finding("fine", f"CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}")


def check_libraries() -> Iterator[Finding]:
    """Whether everything clead depends on imports."""
    for distribution, module in MODULES.items():
        found = load(module)
        if isinstance(found, str):
            mend = f"{INSTALL} --force-reinstall {distribution}"
            yield Finding("broken", f"{distribution} does not import: {found}", mend)
    broken_vision = importlib.util.find_spec("torchvision") and load("torchvision")
    if isinstance(broken_vision, str):
        yield Finding(
            "note",
            f"torchvision does not import ({broken_vision}): built for another torch; clead never needs it",
            f"{sys.executable} -m pip uninstall torchvision",
        )


def check_kernels() -> Iterator[Finding]:
    """Whether the compiled extension is there, fits this torch, and computes."""
    native = load("clead_kernels._native")
    if isinstance(native, str):
        yield Finding("broken", f"clead_kernels does not import: {native}", BUILD)
        return
    if not native.available():
        compiler = next(filter(shutil.which, ([os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"])), None)
        yield Finding("note", f"no native kernels, PyTorch computes instead: {native.why_absent()}")
        needs = {"pybind11": importlib.util.find_spec("pybind11"), "a C++ compiler": compiler}
        missing = [name for name, found in needs.items() if not found]
        if os.environ.get("CLEAD_NATIVE") == "0":
            yield Finding("note", "CLEAD_NATIVE=0 switches them off", "unset CLEAD_NATIVE")
        elif "a C++ compiler" in missing:
            yield Finding(
                "note", "they cannot be built: no C++ compiler", "sudo apt-get install g++ (or your system's)"
            )
        else:
            packages = f"{INSTALL} pybind11 setuptools wheel ninja && " if missing else ""
            yield Finding("note", "they can be built here", f"{packages}{BUILD}")
        return
    info = native.build_info()
    yield Finding("fine", f"native kernels for {info['isas']}, {info['isa']} in use ({info['compiler']})")
    if info["isa"] == "baseline":
        yield Finding("note", "this CPU has no AVX2: the kernels run, but several times slower than they could")


def check_operators() -> Iterator[Finding]:
    """A small loss and its gradient against a value derived by hand."""
    try:
        import torch

        from clead_kernels import info_nce

        rows = torch.eye(2, requires_grad=True)
        loss = info_nce(rows, torch.eye(2), temperature=1.0)
        loss.backward()
        expected = 0.3132616875182228  # ln(1 + e^-1): a cosine of 1 with the positive, of 0 with the other
        right = abs(float(loss.detach()) - expected) < 1e-6 and bool(rows.grad is not None)
    except Exception as error:  # whatever is wrong here is the finding
        yield Finding("broken", f"info_nce fails: {type(error).__name__}: {one_line(error)}", BUILD)
        return
    if right:
        yield Finding("fine", "info_nce computes what it should")
    else:
        yield Finding("broken", f"info_nce gives {float(loss.detach())!r} instead of {expected!r}", BUILD)


def check_triton() -> Iterator[Finding]:
    """Triton, which only GPUs profit from."""
    if importlib.util.find_spec("triton") is None:
        yield Finding("note", "no Triton: only needed on a GPU", f"{INSTALL} 'triton>=3.6'")
        return
    found = load("triton")
    if isinstance(found, str):
        yield Finding("note", f"Triton does not import: {found}", f"{INSTALL} --force-reinstall 'triton>=3.6'")
    elif release(found.__version__) < (3, 6):
        yield Finding("note", f"Triton {found.__version__}; clead needs 3.6", f"{INSTALL} --upgrade 'triton>=3.6'")
    else:
        yield Finding("fine", f"Triton {found.__version__}")


def check_copies() -> Iterator[Finding]:
    """Whether the packages that are imported are those that are installed."""
    package = Path(__file__).resolve().parents[1]
    kernels = importlib.util.find_spec("clead_kernels")
    if kernels is None or kernels.origin is None:
        yield Finding("broken", "clead_kernels is not installed beside clead", BUILD)
        return
    folder = Path(kernels.origin).resolve().parent
    together = folder in (package.parent / "clead_kernels", package.parent / "kernels" / "clead_kernels")
    if not together:
        yield Finding(
            "note", f"clead is from {package} but clead_kernels from {folder}", f"cd {package.parent} && {BUILD}"
        )
    stale = [
        path for path in folder.glob("_C.*") if not path.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
    ]
    if stale:
        yield Finding("note", f"{stale[0].name} is built for another Python", f"cd {package.parent} && {BUILD}")


def release(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_torch,
    check_libraries,
    check_copies,
    check_kernels,
    check_operators,
    check_triton,
)
