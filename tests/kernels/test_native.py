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
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INF = math.inf
NORMS = ("linf", "l2", "l1")

pytestmark = pytest.mark.kernels
built = pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")


def images(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator):
    """x_adv, grad and x with zeros, infinities and NaN."""
    x_adv, grad, x = torch.rand(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    grad -= 0.5
    grad.view(-1)[::5] = 0
    x.view(-1)[1::17] = 0
    if len(x) > 2 and x[0].numel() > 2:
        grad.view(-1)[6:9] = torch.tensor([math.nan, INF, -INF])
        x_adv[1].view(-1)[2] = x[2].view(-1)[1] = math.nan
    return x_adv, grad, x


def layouts(x_adv, grad, x):
    """The same images in other orders and strides, and other images in views."""
    yield x_adv, grad, x
    yield (*(t.transpose(0, -1) for t in (x_adv, grad, x)),)
    yield (*(t[..., ::2] for t in (x_adv, grad, x)),)
    yield x_adv[..., ::2], grad[..., ::2].contiguous(), x[..., ::2]
    yield x_adv, grad[:1].expand_as(grad), x[..., :1].expand_as(x)
    if x.dim() == 4:
        last = [t.contiguous(memory_format=torch.channels_last) for t in (x_adv, grad, x)]
        yield (*last,)
        yield last[0], grad, last[2]
        yield x_adv, last[1], x


def wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def radii(x: torch.Tensor, norm: str, generator: torch.Generator):
    """(eps, step): per sample, and for linf also per channel, per last dimension and per element."""
    ones = [1] * (x.dim() - 1)
    shapes = [[len(x), *ones]] if norm != "linf" else [[len(x), *ones], [*ones, x.shape[-1]], list(x.shape)]
    if norm == "linf" and x.dim() == 4:
        shapes.append([1, x.shape[1], 1, 1])
    some = [torch.rand(shape, generator=generator, dtype=wide(x)) * 0.3 for shape in shapes]
    yield from ((None, None), *zip(some, [*some[1:], None], strict=True), (None, some[0]))


SHAPES = ((7, 3, 5, 9), (4, 3, 32, 32), (2, 20000), (3, 127), (2, 128), (3, 129), (130, 1), (3,), (1, 2, 2))
LIMITS = ((0.0, 1.0, False), (-INF, INF, True), (0.2, 0.7, False))


def calls(dtype: torch.dtype):
    """(an op twice, the tensor it writes, the arguments after it): everything a kernel is compared on."""
    generator = torch.Generator().manual_seed(0)
    # The last ones: no gradient, gradients that under- or overflow when squared.
    for shape, scale in (*((shape, 1.0) for shape in SHAPES), ((4, 40), 0.0), ((4, 40), 1e-310), ((4, 40), 1e300)):
        plain = images(dtype, shape, generator)
        for number, (x_adv, grad, x) in enumerate(layouts(*plain)):
            grad = grad * scale
            clean = (x, (x.nan_to_num() * 255).byte())[number % 2]
            for norm in NORMS:
                if norm == "l1" and plain[0].numel() > 2**12 and number > 0:
                    continue  # the reference sorts in eager PyTorch: seconds for what smaller images show as well
                for eps, step in radii(x, norm, generator) if number % 3 == 0 else ((None, None),):
                    low, high, targeted = LIMITS[number % 3]
                    scalars, tensors = (0.1, 0.03), (eps, step)
                    if norm == "l1":
                        part = (None, step, torch.ones(len(x), *[1] * (x.dim() - 1), dtype=wide(x)))[number % 3]
                        scalars, tensors = (2.0, 0.7, 0.1), (eps, step, part)
                    yield ops.PGD_STEP[norm], x_adv, (grad, clean, *scalars, *tensors, low, high, targeted)
                    yield ops.PROJECT[norm], x_adv, (clean, 0.1, eps, low, high)
                    yield ops.PROJECT[norm], x_adv, (clean, 30.0, None, low, high)
                    ids = torch.randint(-(2**62), 2**62, (len(x), 2), generator=generator)[:, 1]
                    yield ops.RANDOM_START[norm], x_adv, (clean, 0.3, eps, -(2**60) - 1, ids, 2**32 - 2, low, high)
            yield ops.MOMENTUM, x_adv, (grad, 0.9)
        x_adv, grad, x = plain
        yield ops.RANDOM_START["linf"], x_adv, (x, 0.1, None, 5, None, 0, 0.0, 1.0)


def agree(table, x_adv: torch.Tensor, arguments: tuple) -> bool:
    """Whether both implementations write the same numbers; NaN is NaN, and zeros have no sign."""
    ours = torch.full((2 * x_adv.numel() + 64,), 9.0, dtype=x_adv.dtype).as_strided(x_adv.shape, x_adv.stride())
    ours.copy_(x_adv)
    theirs = x_adv.clone()
    table["native"](ours, *arguments)
    table["reference"](theirs, *arguments)
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def compare_with_reference() -> int:
    """All native kernels against the reference; returns the number of comparisons."""
    compared = 0
    for dtype in FLOATS:
        for table, x_adv, arguments in calls(dtype):
            name = str(table["native"])
            assert agree(table, x_adv, arguments), (name, dtype, x_adv.shape, x_adv.stride(), arguments[1:])
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
    assert used == isa and int(compared) > 1000


@built
def test_an_unknown_instruction_set_is_refused():
    code = "import torch, clead_kernels as k; x = torch.rand(2, 3); k.pgd_step_(x, x, x, eps=0.1, step_size=0.1)"
    result = child(code.replace("x, x, x", "x, x + 1, x + 1"), CLEAD_ISA="neon")
    assert "CLEAD_ISA must be one that this machine has (baseline" in result.stderr and "got 'neon'" in result.stderr


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_there_is(dtype):
    """As x_adv, as x and as the result of rounding: numbers below the normal ones, infinities and NaN included."""
    x = torch.arange(65536).to(torch.int16).view(dtype)
    order = torch.randperm(65536, generator=torch.Generator().manual_seed(0))
    for eps, low, high in ((0.0, -INF, INF), (3e-8, -INF, INF), (1e-5, -1.0, 1.0), (0.1, -INF, 3e4), (INF, -INF, INF)):
        for x_adv in (x.clone(), x[order], x.roll(1)):
            assert agree(ops.PROJECT["linf"], x_adv, (x, eps, None, low, high))
    finite = x[x.isfinite()]
    near = torch.nextafter(finite.float(), torch.tensor(0.0)).double()  # between two halves, seen in float64
    start = near.to(dtype)
    assert agree(ops.PROJECT["l2"], start, (finite, 1e-6, torch.full((len(start),), 1e-9), -INF, INF))


def evaluate(op, norm, impl, x_adv, grad, x, ids):
    """One op on the samples ``ids``, each with an eps of its own."""
    radius = torch.linspace(0.05, 0.6, len(x)).to(torch.promote_types(x.dtype, torch.float32))
    eps = radius[ids].reshape(-1, *[1] * (x.dim() - 1))
    out, grad, x = x_adv[ids], grad[ids], x[ids]
    if op == "step":
        sparsity, none = ((), (None,)) if norm != "l1" else ((0.05,), (None, None))
        ops.PGD_STEP[norm][impl](out, grad, x, 0.0, 0.03, *sparsity, eps, *none, 0.0, 1.0, False)
    elif op == "momentum":
        ops.MOMENTUM[impl](out, grad, 0.9)
    elif op == "project":
        ops.PROJECT[norm][impl](out, x, 0.0, eps, 0.0, 1.0)
    else:
        ops.RANDOM_START[norm][impl](out, x, 0.0, eps, 77, ids, 3, 0.0, 1.0)
    return out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=built)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_neither_threads_nor_the_batch_change_a_bit(norm, impl, dtype):
    generator = torch.Generator().manual_seed(2)
    x, x_adv, grad = (torch.rand(12, 3, 32, 33, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    grad -= 0.5
    threads = torch.get_num_threads()
    try:
        for op in ("step", "project", "start", "momentum"):
            torch.set_num_threads(1)
            whole = evaluate(op, norm, impl, x_adv, grad, x, torch.arange(12))
            for count, size in ((1, 1), (2, 12), (2, 1), (3, 5)):
                torch.set_num_threads(count)
                parts = [evaluate(op, norm, impl, x_adv, grad, x, ids) for ids in torch.arange(12).split(size)]
                assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(threads)


@built
@pytest.mark.parametrize("norm", NORMS)
def test_raw_ops_check_their_arguments(norm):
    x, start = torch.rand(2, 3), ops.RANDOM_START[norm]["native"]

    def step(x_adv, grad, x, eps, step_size, eps_tensor, step_tensor, *limits):
        more, none = ((), ()) if norm != "l1" else ((0.1,), (None,))
        ops.PGD_STEP[norm]["native"](x_adv, grad, x, eps, step_size, *more, eps_tensor, step_tensor, *none, *limits)

    for bad, message in (
        ((x.double(), x, 0.1, 0.1, None, None), "one dtype"),
        ((x[:, :2], x, 0.1, 0.1, None, None), "grad does not broadcast"),
        ((x, x, 0.1, 0.1, torch.rand(3), None), "eps must have 2 dimensions"),
        ((x, x, 0.1, 0.1, torch.rand(2, 1).double(), None), "eps must be float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            step(x.clone(), *bad, 0.0, 1.0, False)
    with pytest.raises(RuntimeError, match=r"float32, float64, bfloat16 and float16"):
        step(x.int(), x.int(), x.int(), 0.1, 0.1, None, None, 0.0, 1.0, False)
    for ids in (torch.arange(3), torch.arange(2).int(), torch.arange(2)[:, None]):
        with pytest.raises(RuntimeError, match=r"sample_ids must be int64 \[2\]"):
            start(x.clone(), x, 0.1, None, 1, ids, 0, 0.0, 1.0)


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
