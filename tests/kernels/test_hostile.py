"""What no caller should pass: an exception or the right numbers, never the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clead_kernels
from clead_kernels import _native, info_nce, instance_margin, sigmoid_loss, similarity, similarity_topk, sup_con

pytestmark = pytest.mark.kernels

ROOT = Path(__file__).resolve().parents[2]
DOORS = {
    "info_nce": lambda a, b, labels, **k: info_nce(a, b, positives=labels, reduction="none", **k),
    "sup_con": lambda a, b, labels, **k: sup_con(
        a, labels, candidates=b, candidate_labels=labels, reduction="none", **k
    ),
    "sigmoid_loss": lambda a, b, labels, **k: sigmoid_loss(a, b, weights=labels.to(a.dtype), reduction="none", **k),
    "instance_margin": lambda a, b, labels, **k: instance_margin(a, b, positives=labels, **k),
    "similarity": lambda a, b, labels, **k: similarity(a, b, **k),
    "similarity_topk": lambda a, b, labels, **k: similarity_topk(a, b, k=3, **k)[0],
}
LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x.repeat_interleave(2)[::2],
    "one row": lambda x: x[:1].expand(x.shape),
    "one number": lambda x: x.flatten()[0].expand(x.shape),
    "overlapping": lambda x: x.contiguous().as_strided(x.shape, (1,) * x.ndim),
    "negated": lambda x: torch._neg_view(-x),
    "within": lambda x: torch.nn.functional.pad(x, (1,) * 2 * x.ndim)[(slice(1, -1),) * x.ndim],
}


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.kernels.{module}", *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.skipif(not _native.available(), reason="the extension is not built")
@pytest.mark.parametrize("combinations", [10, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_argument_of_a_native_op_ends_the_process(combinations):
    done = run("hostile", str(combinations))
    last = done.stdout.rstrip().rpartition("\n")[2]
    assert done.returncode == 0, f"{last}: exit code {done.returncode}\n{done.stderr[-2000:]}"
    ops, calls, refused = (int(word) for word in last.split() if word.isdigit())
    assert ops >= 21 and calls > 5000 and calls // 4 < refused < calls


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("door", DOORS)
def test_no_number_depends_on_how_they_lie(door, layout, impl, randn):
    a, b, labels = randn(6, 6, seed=1), randn(6, 6, seed=2), torch.tensor([2, 0, 1, 1, 0, 2])
    strange = [LAYOUTS[layout](x) for x in (a, b, labels)]
    want, got = (DOORS[door](*operands, impl=impl) for operands in ([x.clone() for x in strange], strange))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_images_that_overlap_others_are_refused(norm, impl):
    memory = torch.rand(200)
    images, grad, x = (memory[at : at + 24].view(2, 3, 4) for at in (0, 24, 48))
    before = memory.clone()
    overlapping = (
        (images, memory[23:47].view(2, 3, 4), x),
        (images, grad, images),
        (images, grad, memory[:24].view(2, 4, 3).mT),
        (memory[:60].view(2, 3, 10)[..., :4], grad, memory[100:124].view(2, 3, 4)),
        (memory.as_strided((2, 3, 4), (1, 2, 4)), memory[100:124].view(2, 3, 4), memory[124:148].view(2, 3, 4)),
        (memory.as_strided((2, 3, 4), (12, 4, 0)), memory[100:124].view(2, 3, 4), memory[124:148].view(2, 3, 4)),
    )
    for x_adv, ascent, clean in overlapping:
        with pytest.raises(ValueError, match="x_adv"):
            clead_kernels.pgd_step_(x_adv, ascent, clean, eps=0.1, step_size=0.1, norm=norm, impl=impl)
    assert torch.equal(memory, before)
    clead_kernels.pgd_step_(images, grad, x, eps=0.1, step_size=0.1, norm=norm, impl=impl)
    assert torch.equal(memory[24:], before[24:]) and not torch.equal(memory[:24], before[:24])


@pytest.mark.skipif(not _native.available(), reason="the extension is not built")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_ops_themselves_refuse_them_too(norm):
    ops, images = torch.ops.clead, torch.rand(2, 3, 4)
    step, extra = getattr(ops, f"pgd_step_{norm}_"), (0.5,) * (norm == "l1")
    tensors = (None,) * (3 if norm == "l1" else 2)
    for x_adv, x in ((images, images), (images[:1].expand(2, 3, 4), images.clone()), (images.sum(), images.sum())):
        with pytest.raises(RuntimeError, match="x_adv"):
            step(x_adv, x.clone(), x, 0.1, 0.1, *extra, *tensors, 0.0, 1.0, False)


def test_tensors_on_two_devices_get_no_invented_numbers():
    a, x = torch.rand(3, 4), torch.rand(2, 3)
    for call in (
        lambda: torch.ops.clead.similarity(a, a.to("meta"), None, 1.0, True, "reference"),
        lambda: torch.ops.clead.similarity(a, a, torch.tensor(1.0, device="meta"), 1.0, True, "reference"),
        lambda: torch.ops.clead.project_l2_(x.clone(), x.to("meta"), 0.1, None, 0.0, 1.0),
    ):
        with pytest.raises(ValueError, match="must be on one device, got cpu, meta"):
            call()
    assert torch.ops.clead.similarity(a.to("meta"), a.to("meta"), torch.tensor(1.0), 1.0, True, "reference").is_meta


@pytest.mark.skipif(not _native.available(), reason="the extension is not built")
@pytest.mark.parametrize("door", [name for name in DOORS if name != "instance_margin"])  # PyTorch reads that first
def test_freed_storage_is_refused(door, randn):
    """As shards of parameters leave behind between their uses."""
    a, b, labels = randn(6, 6, seed=1), randn(6, 6, seed=2), torch.arange(6)
    b.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"storage|allocated"):
        DOORS[door](a, b, labels)
