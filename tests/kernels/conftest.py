"""What all kernel tests share: seeded random tensors and the error measure of the numerical bar."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """``randn(*shape, dtype=float64, seed=0, grad=False)``: normal numbers from a generator of their own."""

    def make(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, grad: bool = False) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
        x = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return x.to(dtype).requires_grad_(grad)

    return make


@pytest.fixture
def printed_on() -> Callable[[str, str], str]:
    """``printed_on(isa, code)``: what code prints in a process with that instruction set; skips where there is none."""

    def run(isa: str, code: str) -> str:
        here = Path(__file__).resolve().parent
        paths = os.pathsep.join([str(here.parents[1] / "kernels"), str(here)])
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": paths, "CLEAD_ISA": isa, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if "CLEAD_ISA must be one that this machine has" in result.stderr:
            pytest.skip(f"this machine has no {isa}")
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """``|actual - truth| / |truth|`` in float64 (Frobenius norms)."""

    def measure(actual: Tensor, truth: Tensor) -> float:
        return float((actual.detach().double() - truth).norm() / truth.norm())

    return measure


@pytest.fixture
def interpreter() -> None:
    """Skips where Triton's interpreter, which calculates with NumPy, does not know the NumPy that is here."""
    triton = pytest.importorskip("triton")
    of_triton, of_numpy = (tuple(map(int, x.__version__.split(".")[:2])) for x in (triton, numpy))
    if of_triton < (3, 7) and of_numpy >= (2, 4):
        pytest.skip(f"Triton {triton.__version__} does not interpret with NumPy {numpy.__version__}")


@pytest.fixture(autouse=True, scope="session")
def fresh_compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiler's cache knows nothing of our fake kernels, and would return code made for older ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A kernel that reads or writes elsewhere leaves its process without a device: pytest-xdist begins another one."""
    done = yield
    if item.get_closest_marker("gpu") and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)
    return done


@pytest.fixture
def shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every tile of the contrastive Triton kernels a share of its own, as large devices do with large inputs."""
    from clead_kernels._shares import MOST
    from clead_kernels.contrastive import triton_division

    def share_out(rows: int, columns: int, block_m: int, block_n: int, *_: int) -> tuple[int, int]:
        tiles = max(1, -(-columns // block_n))
        length = -(-tiles // MOST)
        return length * block_n, -(-tiles // length)

    monkeypatch.setattr(triton_division, "share_out", share_out)


@pytest.fixture(autouse=True)
def shared_out_if_asked(request: pytest.FixtureRequest) -> None:
    """SHARED=1 asks for it in a whole process."""
    if os.environ.get("SHARED") == "1":
        request.getfixturevalue("shared_out")
