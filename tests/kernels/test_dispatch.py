"""The dispatch table: what auto takes, what a named implementation refuses, and what explain says."""

from __future__ import annotations

import pytest
import torch

import clead_kernels
from clead_kernels import _native, dispatch
from clead_kernels.dispatch import check, explain, resolve

pytestmark = pytest.mark.kernels

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["extension", "no extension"])
def extension(request, monkeypatch):
    """Runs a test as if the extension were there, and as if it were not."""
    monkeypatch.setattr(_native, "available", lambda: request.param)
    monkeypatch.setattr(_native, "why_absent", lambda: None if request.param else "no compiler was found")
    return request.param


def test_every_public_op_is_in_the_table():
    about = {"Impl", "Temperature", "FalseNegatives", "Cancelled", "cancelled", "explain", "build_info"}
    assert set(clead_kernels.__all__) - about == set(dispatch.OPS)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "xpu"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_reference_runs_everything_everywhere(device, dtype):
    for op in dispatch.OPS:
        assert resolve(op, "reference", device=device, dtype=dtype) == "reference"


def test_auto_takes_native_on_the_cpu_when_it_is_there(extension):
    best = "native" if extension else "reference"
    for op in ("pgd_step_", "project_", "random_start_"):
        for norm in ("linf", "l2", "l1"):
            for dtype in FLOATS:
                assert resolve(op, "auto", device="cpu", dtype=dtype, norm=norm) == best
    assert resolve("nt_xent", "auto", device="cpu", dtype=torch.float32) == best
    assert resolve("nt_xent", "auto", device="cpu", dtype=torch.float32, levels="several", treatment="attract") == best
    assert resolve("instance_margin", "auto", device="cpu", dtype=torch.bfloat16) == "reference"


KERNELS = [op for op in dispatch.OPS if op not in ("sigmoid_loss", "conv3x3")]


@pytest.mark.parametrize("op", KERNELS)
def test_auto_prefers_kernels_on_a_gpu_on_trial(op, monkeypatch):
    monkeypatch.setattr(dispatch, "_absence", lambda impl, device: None)
    for dtype in (torch.bfloat16, torch.float32):
        row = dispatch.find(op, "auto", device="cuda", dtype=dtype)
        assert row.impl in ("triton", "native") and row.on_trial
        assert not dispatch.find(op, "reference", device="cuda", dtype=dtype).on_trial
    assert explain(op, device="cuda").startswith(f"{op} on cuda float32: {row.impl}")
    assert explain(op, device="cuda").count("taken after a first call that agrees with the reference") == 1
    assert not any(row.on_trial and "cuda" not in row.devices for row in dispatch.SUPPORT)
    assert not dispatch.find(op, "auto", device="cpu", dtype=dtype).on_trial


def test_auto_takes_the_reference_on_a_gpu_for_what_kernels_do_not_do(monkeypatch):
    monkeypatch.setattr(dispatch, "_absence", lambda impl, device: None)
    for op, features in (
        ("nt_xent", {"width": "above 512"}),
        ("nt_xent", {"debias": "yes"}),
        ("nt_xent", {"topk": "above 255"}),
        ("instance_margin", {"width": "above 512"}),
        ("similarity_topk", {"k": "above 256"}),
        ("augment", {"order": "any"}),
        ("sigmoid_loss", {}),
    ):
        assert resolve(op, "auto", device="cuda", dtype=torch.float32, **features) == "reference"
    assert resolve("nt_xent", "auto", device="cuda", dtype=torch.float64) == "reference"


def test_named_native_never_falls_back(extension):
    if extension:
        assert resolve("pgd_step_", "native", device="cpu", dtype=torch.float32, norm="linf") == "native"
        with pytest.raises(
            NotImplementedError, match=r"pgd_step_ on cpu, float32, norm=l7; .*native \(cpu; .*linf, l2, l1\)"
        ):
            resolve("pgd_step_", "native", device="cpu", dtype=torch.float32, norm="l7")
    else:
        with pytest.raises(NotImplementedError, match="native is absent here: no compiler was found"):
            resolve("pgd_step_", "native", device="cpu", dtype=torch.float32, norm="linf")
    with pytest.raises(NotImplementedError, match=r"impl='native' cannot run similarity on cuda.* and reference \(any"):
        resolve("similarity", "native", device="cuda", dtype=torch.float32)


@pytest.mark.parametrize("archs", ["none", "8.0 9.0+PTX"])
def test_native_on_cuda_needs_a_build_with_cuda(monkeypatch, archs):
    monkeypatch.setattr(_native, "available", lambda: True)
    monkeypatch.setattr(_native, "build_info", lambda: {"cuda": archs})
    assert resolve("pgd_step_", "native", device="cpu", dtype=torch.float32) == "native"
    if archs != "none":
        assert resolve("pgd_step_", "native", device="cuda", dtype=torch.float32, norm="l1") == "native"
        return
    with pytest.raises(NotImplementedError, match="native is absent here: the extension was built without CUDA"):
        resolve("pgd_step_", "native", device="cuda", dtype=torch.float32)


WITHOUT_TRITON = [
    op for op in dispatch.OPS if not any(row.op == op and row.impl == "triton" for row in dispatch.SUPPORT)
]


@pytest.mark.parametrize("op", WITHOUT_TRITON)
def test_triton_says_what_there_is_instead(op):
    with pytest.raises(NotImplementedError, match=rf"impl='triton' cannot run {op} on cuda, float64; {op} has .*refer"):
        resolve(op, "triton", device="cuda", dtype=torch.float64)


def test_unknown_names_and_dtypes():
    with pytest.raises(ValueError, match="op must be one of info_nce, .*got 'infonce'"):
        resolve("infonce", "auto", device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'reference', 'triton', 'native', got 'cuda'"):
        resolve("info_nce", "cuda", device=CPU, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="impl='auto' cannot run info_nce on cpu, int64"):
        resolve("info_nce", "auto", device=CPU, dtype=torch.int64)


def test_check_names_the_first_op_that_cannot_run():
    check(["info_nce", "pgd_step_"], "auto", CPU, torch.float32, norm="linf")
    check([], "triton", CPU, torch.float32)
    with pytest.raises(NotImplementedError, match="impl='native' cannot run similarity"):
        check(["similarity", "pgd_step_"], "native", "cuda", torch.float32, norm="linf")


def test_explain_says_what_is_taken_and_why(extension):
    text = explain("pgd_step_")
    assert text.splitlines()[0] == f"pgd_step_ on cpu float32: {'native' if extension else 'reference'}"
    assert ("absent here: no compiler was found" in text) == (not extension)
    assert "native" in explain("pgd_step_", device="cuda", dtype=torch.float16)
    assert explain("sigmoid_loss", device="cuda").splitlines()[0] == "sigmoid_loss on cuda float32: reference"
    assert explain("nt_xent", dtype=torch.int32).splitlines()[0] == "nt_xent on cpu int32: none"
    assert [line.split()[0] for line in explain().splitlines() if line[0] != " "] == list(dispatch.OPS)
    with pytest.raises(ValueError, match="op must be one of"):
        explain("nothing")
