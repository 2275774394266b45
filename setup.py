"""Builds clead_kernels._C from csrc/, or installs the pure-Python package and says what is missing.

CLEAD_NATIVE=0 leaves the extension out; CLEAD_CUDA=0/1 leaves out or builds csrc/cuda (default: built where a CUDA
toolkit and a CUDA torch are), for TORCH_CUDA_ARCH_LIST; MAX_JOBS compilers run at once, CLEAD_CXXFLAGS come last.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from importlib.util import find_spec

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

os.chdir(os.path.dirname(os.path.abspath(__file__)))
CXX = os.environ.get("CXX", "g++" if shutil.which("g++") else "c++").split()
NVCC = shutil.which("nvcc", path=os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin:" + os.environ["PATH"])
PYTHON_INCLUDE = sysconfig.get_paths()["include"]
SSE, AVX2 = ["-msse4.2", "-mpopcnt"], ["-mavx2", "-mfma", "-mbmi", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
BF16 = {"avx512_bf16": [*AVX512, "-mavx512bf16"], "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]}
X86 = {"isa": {"baseline": SSE, "avx2": AVX2, "avx512": AVX512}, "bf16": BF16}  # chosen at run time
ISAS = X86 if sysconfig.get_platform().endswith("x86_64") else {"isa": {"baseline": []}, "bf16": {}}


def missing() -> str | None:
    """What keeps the extension from being built, or None."""
    needs = {module: find_spec(module) for module in ("torch", "pybind11")}
    needs |= {CXX[0]: shutil.which(CXX[0]), "Python.h": os.path.exists(f"{PYTHON_INCLUDE}/Python.h")}
    return ", ".join(f"no {need}" for need, found in needs.items() if not found) or None


class Build(build_ext):
    """Compiles all of csrc, found by folder, and links one module on torch's stable ABI."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext``, with objects kept under build/ for the next time."""
        import pybind11
        import torch

        cuda = os.environ.get("CLEAD_CUDA", "1" if NVCC and torch.version.cuda else "0") != "0"
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0 9.0+PTX").replace(";", " ").split() if cuda else []
        if archs and not NVCC:
            sys.exit("CLEAD_CUDA=1 needs the CUDA toolkit: nvcc is neither on PATH nor in CUDA_HOME/bin")
        root = os.path.dirname(torch.__file__)
        folders = ["csrc/include", "csrc", pybind11.get_include(), f"{root}/include", PYTHON_INCLUDE]
        # Stable ABI of torch 2.11: a module built here loads in all from there on. torch's own pybind11 refuses it.
        common = ["-O3", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020b000000000000", *(f"-I{f}" for f in folders)]
        cxx = [*CXX, *common, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi"]
        cxx += os.environ.get("CLEAD_CXXFLAGS", "").split()
        codes = [(a.removesuffix("+PTX").replace(".", ""), a.endswith("+PTX")) for a in archs]
        gencode = [f"-gencode=arch=compute_{n},code=[sm_{n}{f',compute_{n}' * ptx}]" for n, ptx in codes]
        nvcc = [NVCC, *common, "-DUSE_CUDA", *gencode, "-Xcompiler=-fPIC,-fvisibility=hidden,-Wno-psabi"]
        jobs = [[*cxx, f"-DCLEAD_CUDA_ARCHS={' '.join(archs) or 'none'}", "csrc/module.cpp"]]
        sets = [(source, ISAS.get(source.split(".")[-2], {"none": []})) for source in sorted(glob("csrc/cpu/*.cpp"))]
        jobs += [[*cxx, f"-DCLEAD_ISA={isa}", *flags, source] for source, isas in sets for isa, flags in isas.items()]
        jobs += [[*nvcc, source] for source in sorted(glob("csrc/cuda/*.cu")) if archs]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(compiled, jobs))
        # libtorch.so brings libtorch_cuda where there is one, for the symbols that csrc/cuda declares weak.
        libraries = ["-Xlinker", "--no-as-needed", f"-L{root}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
        run([*([NVCC] if archs else cxx), "-shared", *objects, *libraries], self.get_ext_fullpath(ext.name))


def run(command: list[str], target: str) -> str:
    """Write ``target`` in one piece: a process that has an old module mapped keeps it."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if subprocess.run([*command, "-o", f"{target}.new"]).returncode:
        sys.exit(f"the native kernels do not build (CLEAD_NATIVE=0 installs without them): {' '.join(command)}")
    os.replace(f"{target}.new", target)
    return target


def compiled(command: list[str]) -> str:
    """The object of a command that ends in its source; compiled if the command or a file it read has changed."""
    digest = hashlib.sha256(repr(command).encode()).hexdigest()[:12]
    target = f"build/objects/{os.path.basename(command[-1])}-{digest}.o"
    if os.path.exists(target):
        with open(f"{target}.d") as depends:
            files = depends.read().replace("\\\n", " ").split(":", 1)[1].split()
        if all(os.path.exists(file) and os.path.getmtime(file) <= os.path.getmtime(target) for file in files):
            return target
    return run([*command, "-c", "-MMD", "-MF", f"{target}.d"], target)


if reason := "CLEAD_NATIVE=0" if os.environ.get("CLEAD_NATIVE") == "0" else missing():
    sys.stderr.write(f"warning: no native kernels ({reason}); to build them: pip install --no-build-isolation -e .\n")
setup(
    # kernels/ is a source root, not a package: a top-level "kernels" would shadow the distribution of that name.
    packages=find_packages(include=["clead", "clead.*"]) + find_packages("kernels"),
    package_dir={"clead_kernels": "kernels/clead_kernels"},
    package_data={"clead": ["py.typed"], "clead_kernels": ["py.typed"]},
    ext_modules=[] if reason else [Extension("clead_kernels._C", [])],
    cmdclass={"build_ext": Build},
)
