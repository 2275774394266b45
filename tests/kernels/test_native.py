"""The compiled extension: the reference's bits for every instruction set, and plain words when it is absent."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from clead_kernels import _native
from clead_kernels.perturb import ops

ROOT = Path(__file__).resolve().parents[2]
FLOATS = (torch.float64, torch.float32, torch.bfloat16)
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
INF = math.inf

pytestmark = pytest.mark.kernels
built = pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")


def steps(dtype: torch.dtype):
    """(x_adv, grad, x, eps, step) of many shapes, layouts and broadcasts, with zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in ((7, 3, 5, 9), (5, 3, 32, 32), (3, 40000), (1,), (2, 1)):
        x_adv, grad, x = torch.rand(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
        grad -= 0.5
        grad.view(-1)[::5] = 0
        x.view(-1)[1::17] = 0
        if x.numel() > 20:
            grad.view(-1)[6:9] = torch.tensor([math.nan, INF, -INF])
            x_adv.view(-1)[5] = x.view(-1)[6] = math.nan
        ones = [1] * (x.dim() - 1)
        sample, last, full = (
            torch.rand(s, generator=generator, dtype=wide) * 0.2 for s in ((len(x), *ones), (*ones, shape[-1]), shape)
        )
        for eps, step in ((None, None), (sample, None), (last, sample), (full, last), (None, full)):
            yield x_adv, grad, x, eps, step
        yield *(t.transpose(0, -1) for t in (x_adv, grad, x)), None, None
        yield *(t[..., ::2] for t in (x_adv, grad, x)), sample, None
        yield x_adv[..., ::2], grad[..., ::2].contiguous(), x[..., ::2], None, sample
        if x.dim() == 4:
            channel = torch.rand(1, 3, 1, 1, generator=generator, dtype=wide) * 0.2
            last_adv, last_grad, last_x = (t.contiguous(memory_format=torch.channels_last) for t in (x_adv, grad, x))
            yield last_adv, last_grad, last_x, channel, sample
            yield last_adv, grad, last_x, channel, None
            yield x_adv, last_grad, x, sample, channel


def compare_with_reference() -> int:
    """pgd_step_linf_ of the extension against the reference, bit by bit; returns the number of comparisons."""
    compared = 0
    for dtype in FLOATS:
        for x_adv, grad, x, eps, step in steps(dtype):
            for low, high, targeted in ((0.0, 1.0, False), (-INF, INF, True), (0.2, 0.7, False)):
                ours = torch.empty(2 * x_adv.numel() + 64, dtype=dtype).as_strided(x_adv.shape, x_adv.stride())
                ours.copy_(x_adv)
                theirs = x_adv.clone()
                for op, out in (("native", ours), ("reference", theirs)):
                    ops.PGD_STEP["linf"][op](out, grad, x, 0.1, 0.03, eps, step, low, high, targeted)
                nan = theirs.isnan()
                view = BITS[theirs.element_size()]
                same = ours.contiguous().view(view) == theirs.contiguous().view(view)
                assert torch.equal(ours.isnan(), nan) and (same | nan).all(), (dtype, x.shape, low, high, targeted)
                compared += 1
    return compared


def child(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT / "tests" / "kernels")])
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths} | env, capture_output=True, text=True
    )


@built
def test_build_info():
    info = _native.build_info()
    assert info.keys() == {"compiler", "torch", "isas", "isa", "bf16", "cuda"}
    assert info["isa"] in info["isas"].split()


@built
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_bits_of_the_reference(isa):
    code = "import test_native as t; print(t._native.build_info()['isa'], t.compare_with_reference())"
    result = child(code, CLEAD_ISA=isa)
    if "CLEAD_ISA must be one that this machine has" in result.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert result.returncode == 0, result.stderr
    used, compared = result.stdout.split()
    assert used == isa and int(compared) > 100


@built
def test_an_unknown_instruction_set_is_refused():
    code = "import torch, clead_kernels as k; x = torch.rand(2, 3); k.pgd_step_(x, x, x, eps=0.1, step_size=0.1)"
    result = child(code.replace("x, x, x", "x, x + 1, x + 1"), CLEAD_ISA="neon")
    assert "CLEAD_ISA must be one that this machine has (baseline" in result.stderr and "got 'neon'" in result.stderr


@built
def test_threads_do_not_change_the_bits():
    x, x_adv, grad = (torch.rand(70001, generator=torch.Generator().manual_seed(i)) for i in range(3))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = x_adv.clone()
            ops.PGD_STEP["linf"]["native"](out, grad - 0.5, x, 0.1, 0.03, None, None, 0.0, 1.0, False)
            results.append(out)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@built
def test_raw_op_checks_its_arguments():
    x, op = torch.rand(2, 3), ops.PGD_STEP["linf"]["native"]
    for bad, message in (
        ((x.double(), x, 0.1, 0.1, None, None), "one dtype"),
        ((x[:, :2], x, 0.1, 0.1, None, None), "grad does not broadcast"),
        ((x, x, 0.1, 0.1, torch.rand(3), None), "eps must have 2 dimensions"),
        ((x, x, 0.1, 0.1, torch.rand(2, 1).double(), None), "eps must be float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(x.clone(), *bad, 0.0, 1.0, False)


def load_copy(tmp_path, monkeypatch, name, **files):
    """``_native`` of a package folder that holds only it and ``files``."""
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(_native.__file__, package / "_native.py")
    for file, content in files.items():
        (package / file).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(f"{name}._native")


def test_absence_is_one_sentence(tmp_path, monkeypatch):
    missing = load_copy(tmp_path, monkeypatch, "missing_ext")
    assert not missing.available() and missing.build_info() == {}
    assert missing.why_absent() == "the extension is not built: pip install --no-build-isolation -e ."
    other = load_copy(tmp_path, monkeypatch, "other_python", **{"_C.cpython-38-x86_64-linux-gnu.so": ""})
    assert "built for another Python (_C.cpython-38-x86_64-linux-gnu.so)" in other.why_absent()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    broken = load_copy(tmp_path, monkeypatch, "broken_ext", **{f"_C{suffix}": "not a library"})
    assert f"does not load with torch {torch.__version__}" in broken.why_absent()
    assert all("\n" not in copy.why_absent() for copy in (missing, other, broken))


def test_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEAD_NATIVE", "0")
    off = load_copy(tmp_path, monkeypatch, "switched_off")
    assert not off.available() and off.why_absent() == "switched off by CLEAD_NATIVE=0"
