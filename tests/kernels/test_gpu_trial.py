"""Kernels on trial on a CUDA device: all pass, then nothing waits for the device, and graphs take what has passed."""

from __future__ import annotations

import warnings

import pytest
import torch

from clead_kernels import _trial, dispatch, explain, nt_xent
from tests.kernels.trial_cases import CASES, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),  # that it is a prototype
]


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch):
    """No trial yet, and an error of one that fails."""
    monkeypatch.setattr(_trial, "_findings", {})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*choose by hand", RuntimeWarning)
        yield


def taken():
    return [finding.taken for finding in _trial._findings.values()]


@pytest.mark.parametrize("rows", [24, 300, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_agree_and_are_taken(case, dtype, rows):
    op, call = CASES[case]
    row = dispatch.find(op, "auto", device="cuda", dtype=dtype)
    if not row.on_trial:
        pytest.skip(f"{op} has no kernel for {dtype} here")
    made = tensors(dtype, "cuda", rows)
    call(made)
    assert taken() == [row.impl]
    assert explain(op, device="cuda", dtype=dtype).startswith(f"{op} on cuda {str(dtype)[6:]}: {row.impl}")
    try:
        torch.cuda.set_sync_debug_mode("error")
        call(made)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(taken()) == 1


@pytest.mark.parametrize("tried", [False, True])
def test_a_captured_graph_takes_what_was_found_before(tried):
    pytest.importorskip("triton")
    x = tensors(torch.float32, "cuda", 256)["a"].detach()
    expected = nt_xent(x, impl="reference")
    nt_xent(x, impl="triton")  # compiled
    if tried:
        nt_xent(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = nt_xent(x)
    graph.replay()
    assert taken() == (["triton"] if tried else [])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (loss.item() == expected.item()) or tried


def test_a_named_kernel_is_not_tried():
    pytest.importorskip("triton")
    nt_xent(tensors(torch.float32, "cuda")["a"], impl="triton")
    assert not taken()
