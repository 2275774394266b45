"""The CUDA kernels: ptxas finds room for all of them in registers; on a GPU they give the bits of the reference."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from clead_kernels import _native
from clead_kernels.perturb import ops

pytestmark = pytest.mark.kernels

INCLUDE = Path(__file__).resolve().parents[2] / "csrc" / "include"
DTYPES = {"float": torch.float32, "double": torch.float64, "Bf16": torch.bfloat16, "Half": torch.float16}
NORMS = ("linf", "l2", "l1")
GROUPS = {
    "linf": (
        "template __global__ void pgd_step_linf_dense_kernel<T, Wide<T>, 16 / sizeof(T)>(LinfGrid<T, Wide<T>>);",
        "template __global__ void pgd_step_linf_strided_kernel<T, Wide<T>>(LinfGrid<T, Wide<T>>);",
    ),
    "l2": (
        "template __global__ void pgd_step_l2_kernel<T>(const __grid_constant__ Samples<T>);",
        "template __global__ void momentum_kernel<T>(const __grid_constant__ Samples<T>);",
    ),
    "l1": ("template __global__ void pgd_step_l1_kernel<T>(const __grid_constant__ Samples<T>);",),
    "start": (
        "template __global__ void random_start_linf_kernel<T>(const __grid_constant__ Starts<T>);",
        "template __global__ void random_start_ball_kernel<T, Gaussian>(const __grid_constant__ Starts<T>);",
        "template __global__ void random_start_ball_kernel<T, Exponential>(const __grid_constant__ Starts<T>);",
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit: nvcc is not on PATH")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("group", GROUPS)
def test_no_kernel_spills(tmp_path, group, arch):
    """The headers compile without torch, and -Xptxas -v reports no spill and at most 128 registers per kernel."""
    lines = [re.sub(r"\bT\b", t, line) for t in DTYPES for line in GROUPS[group]]
    source = [f'#include "clead/perturb_{group}.cuh"', "namespace clead::cuda {", *lines, "}"]
    (tmp_path / "probe.cu").write_text("\n".join(source))
    command = ["nvcc", "-std=c++20", "-O3", f"-I{INCLUDE}", f"-arch={arch}", "-cubin", "-Xptxas=-v", "probe.cu"]
    report = subprocess.run([*command, "-o", "probe.cubin"], cwd=tmp_path, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report.stderr)
    registers = re.findall(r"Used (\d+) registers", report.stderr)
    assert len(spills) == len(registers) == len(lines)
    assert all(spill == ("0", "0", "0") for spill in spills), report.stderr
    assert max(map(int, registers)) <= 128


cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(_native.build_info().get("cuda", "none") == "none", reason="the extension has no CUDA kernels"),
]


def images(shape, dtype, seed=0):
    """x_adv, grad and x on the CPU, with zeros, NaN and infinities in the second and third sample."""
    generator = torch.Generator().manual_seed(seed)
    x_adv, grad, x = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    grad = grad - 0.5
    x.view(-1)[::11], x.view(-1)[5::13], grad.view(-1)[::7] = 0.0, 1.0, 0.0
    if len(x) > 2:
        grad[1].view(-1)[0] = math.nan
        grad[2].view(-1)[-1] = math.inf
        grad[3 % len(x)] = 0
    return x_adv.to(dtype), grad.to(dtype), x.to(dtype)


def same(ours, theirs):
    """On the CPU, zeros without a sign and NaN equal to NaN."""
    ours, theirs = ours.cpu(), theirs.cpu()
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def calls(norm, grad, x, eps):
    """(op twice, arguments after x_adv) of a norm."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    per_sample = torch.linspace(0.1, 1, len(x), dtype=wide, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
    parts, none = ((), ()) if norm != "l1" else ((0.03,), (None,))
    yield ops.PGD_STEP[norm], (grad, x, eps, eps / 4, *parts, None, None, *none, 0.0, 1.0, False)
    yield (
        ops.PGD_STEP[norm],
        (grad, x, 0.0, 0.0, *parts, per_sample * eps, per_sample, *none, -math.inf, math.inf, True),
    )
    yield ops.PROJECT[norm], (x, eps, None, 0.0, 1.0)
    yield ops.PROJECT[norm], (x, 0.0, per_sample * eps, 0.1, 0.8)
    ids = torch.arange(len(x), device=x.device) * 2**33 + 7
    yield ops.RANDOM_START[norm], (x, eps, None, -5, ids, 3, 0.0, 1.0)
    yield ops.RANDOM_START[norm], (x, 0.0, per_sample * eps, 5, None, 2**32 - 1, 0.0, 1.0)


def moved(arguments, device):
    return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("norm", [pytest.param(norm, marks=cuda) for norm in NORMS])
@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(5, 3, 5, 7), (4, 3, 32, 32), (3, 127), (2, 129), (4, 1), (2, 3, 224, 224), (0, 3)])
def test_cuda_gives_the_bits_of_the_reference(shape, dtype, norm):
    """The largest shape takes a cluster of blocks on Hopper, and stays in L2 before."""
    x_adv, grad, x = images(shape, dtype)
    size = x[0].numel() if len(x) else 1
    eps = {"linf": 0.1, "l2": 0.1 * math.sqrt(size), "l1": 0.05 * size}[norm]
    layouts = [(x_adv, grad, x)]
    if len(shape) == 4:
        last = {"memory_format": torch.channels_last}
        layouts += [(x_adv.to(**last), grad.to(**last), x.to(**last)), (x_adv, grad.to(**last), x[:1].expand_as(x))]
    for adv, g, centre in layouts:
        for op, arguments in calls(norm, g, centre, eps):
            ours, theirs = adv.cuda(), adv.clone()
            op["native"](ours, *moved(arguments, "cuda"))
            op["reference"](theirs, *arguments)
            assert same(ours, theirs), (op, arguments[2:])
    buffer, truth = x_adv.cuda(), x_adv.clone()
    ops.MOMENTUM["native"](buffer, grad.cuda(), 0.9)
    ops.MOMENTUM["reference"](truth, grad, 0.9)
    assert same(buffer, truth)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # that it is a prototype
@pytest.mark.parametrize("norm", [pytest.param(norm, marks=cuda) for norm in NORMS])
def test_cuda_waits_for_nothing_and_is_captured(norm):
    """No step looks at the device from the host, and a CUDA graph replays them."""
    x_adv, grad, x = (t.cuda() for t in images((4, 3, 32, 32), torch.float32))
    op, arguments = next(calls(norm, grad, x, 0.5))
    wanted = x_adv.clone()
    op["native"](wanted, *arguments)
    ours = x_adv.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op["native"](ours, *arguments)
    ours.copy_(x_adv)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.replay()
        op["native"](x_adv, *arguments)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert same(ours, wanted) and same(x_adv, wanted)


@pytest.mark.parametrize("norm", [pytest.param(norm, marks=cuda) for norm in NORMS])
def test_cuda_refuses_tensors_of_another_device(norm):
    """A host address would end the process's use of the device."""
    x_adv, grad, x = images((4, 3, 8, 8), torch.float32)
    for op, arguments in calls(norm, grad, x, 0.5):
        for place in (i for i, argument in enumerate(arguments) if isinstance(argument, torch.Tensor)):
            mixed = list(moved(arguments, "cuda"))
            mixed[place] = arguments[place]
            with pytest.raises(RuntimeError, match="must be on the device of x_adv"):
                op["native"](x_adv.cuda(), *mixed)
    torch.cuda.synchronize()
