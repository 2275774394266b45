"""Other forms and other libraries compute the same thing: the gate says so, or says why they are not there."""

from __future__ import annotations

import pytest
import torch

from bench import careful, images, rivals, truth
from bench.baselines import Unavailable
from bench.cases import Loss, Perturb, Similarity
from bench.contenders import contenders
from bench.gate import Gate
from clead_kernels import dispatch

pytestmark = pytest.mark.kernels

CASES = [
    Loss("nt_xent", 40, dim=16),
    Loss("sup_con", 40, dim=16, classes=4),
    Loss("info_nce", 20, dim=16, columns=30, temperature=0.2),
    Loss("clip_loss", 20, dim=16, temperature=0.2),
    Loss("sigmoid_loss", 20, dim=16, temperature=0.2),
    Loss("instance_margin", 20, dim=16),
    Similarity("similarity", 9, 17, dim=8),
    Similarity("similarity_topk", 9, 40, dim=8, k=5),
    *(Perturb(op, (4, 3, 16, 16), norm) for op in ("pgd_step_", "project_") for norm in ("linf", "l2", "l1")),
    *(Perturb("random_start_", (16, 3, 16, 16), norm) for norm in ("linf", "l2")),
]


def test_every_operator_has_a_careful_form():
    timed_here = {*dispatch.OPS} - {"augment", "conv3x3"}  # bench.steps times those
    assert set(careful.CAREFUL) == timed_here == {case.op for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}/{case.name}")
def test_rivals_pass_the_gate_or_say_why_not(case, monkeypatch):
    monkeypatch.setattr(careful, "TOPK_BLOCK", 120)  # several blocks
    gate = Gate(case, "cpu", seeds=1)
    passed = set()
    for contender in contenders(case):
        if contender.kind != "rival" or contender.compiled:
            continue
        try:
            assert gate.judge(contender)[0].reason is None, contender.impl
            passed.add(contender.impl)
        except Unavailable as why:
            assert str(why).split()[0] in ("needs", "not", "has", "shrinks") or "no cross-entropy" in str(why)
    expected = {"eager", "careful"}
    if case.part == "loss" and case.op not in ("sigmoid_loss", "instance_margin"):
        expected |= {"linear_cross_entropy"} if hasattr(torch.nn.functional, "linear_cross_entropy") else set()
    assert expected <= passed


@pytest.mark.parametrize("case", [Loss("nt_xent", 24, dim=8), Loss("sup_con", 24, dim=8, classes=3)], ids=str)
def test_leaving_the_diagonal_out_of_a_cross_entropy(case):
    """In float64 a linear cross-entropy over all columns becomes the loss over the others, gradient and all."""

    def plain(a, b, target, reduction):
        return torch.nn.functional.cross_entropy(a @ b.T, target, reduction=reduction).double()

    inputs = case.inputs("cpu", 0, dtype="fp64")
    rows, (grad,) = truth.loss(case, inputs)
    found = rivals.by_cross_entropy(plain, *inputs.leaves, case=case, labels=inputs.labels, reduction="none")
    torch.testing.assert_close(found, rows, rtol=1e-6, atol=1e-6)  # in float32 inside
    (own,) = torch.autograd.grad(found.mean() * inputs.upstream, inputs.leaves)
    torch.testing.assert_close(own, grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("project", [images.sorted_project, images.searched_project])
def test_the_l1_projection_by_hand(project):
    x = torch.tensor([[0.5, 0.5, 0.9, 0.2], [0.5, 0.5, 0.5, 0.5]])
    moved = x + torch.tensor([[0.3, -0.2, 0.4, 0.0], [0.1, 0.0, 0.0, -0.1]])
    # The third coordinate has room for 0.1 only; the first two give up 0.1 each.
    expected = x + torch.tensor([[0.2, -0.1, 0.1, 0.0], [0.1, 0.0, 0.0, -0.1]])
    torch.testing.assert_close(project(moved, x, 0.4), expected)


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda package: None)
    case = CASES[0]
    reasons = {}
    for contender in contenders(case):
        try:
            contender.build(case, case.inputs("cpu", 0))
        except Unavailable as why:
            reasons[contender.impl] = str(why)
    missing = {"inf_cl", "cut_cross_entropy", "liger", "pytorch_metric_learning"}
    assert {name for name, why in reasons.items() if ".[rivals]" in why} == missing
    large = Loss("nt_xent", 512)
    with pytest.raises(Unavailable, match="every positive with every negative"):
        rivals.pairs(large, large.inputs("cpu", 0))
    assert reasons["compile_graph"] == reasons["eager_tf32"] == "needs a CUDA device"
