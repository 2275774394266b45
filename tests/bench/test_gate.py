"""The gate passes what is right, and refuses what is wrong in ways that a benchmark would reward."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench import truth
from bench.baselines import EAGER, Unavailable, bound
from bench.cases import Inputs, Loss, Perturb, Similarity
from bench.contenders import Contender, contenders
from bench.gate import Check, Gate, Verdict

pytestmark = pytest.mark.kernels

LOSSES = [
    Loss("nt_xent", 34, dim=8),
    Loss("nt_xent", 34, dim=16, classes=3, rule="threshold"),
    *(Loss("nt_xent", 32, dim=16, classes=4, rule=rule) for rule in ("labels", "cuts", "topk")),
    Loss("sup_con", 33, dim=8, classes=3),
    Loss("info_nce", 9, dim=8, columns=31, temperature=0.2),
    Loss("clip_loss", 21, dim=8, temperature=0.2),
]
OTHERS = [
    Similarity("similarity", 9, 17, dim=8),
    Similarity("similarity_topk", 9, 40, dim=8, k=5),
    *(Perturb(op, (4, 3, 8, 8), norm) for op in ("pgd_step_", "project_", "random_start_") for norm in ("linf", "l2")),
    *(Perturb(op, (4, 3, 32, 32), "l1") for op in ("pgd_step_", "project_")),
]


def entry(case, impl):
    return next(contender for contender in contenders(case) if contender.impl == impl)


def spoil(case, change, kind="ours"):
    """The eager form with ``change`` applied to what it computes, sent in as one of our implementations."""

    def build(case, inputs):
        right = bound(EAGER[case.op], case, inputs)
        return lambda *leaves, **options: change(right, *leaves, **options)

    return Contender("spoilt", kind, build)


def judged(gate, contender):
    gate.judge(entry(gate.case, "eager"))
    return gate.judge(contender)[0]


def test_a_loss_by_hand():
    """Orthonormal rows: every cosine is 0 or 1, and the loss a logarithm of a count."""
    leaves = (torch.eye(4, dtype=torch.float64) * 3.0,)
    case = Loss("nt_xent", 4, dim=4, temperature=1.0)
    rows, _ = truth.loss(case, Inputs(leaves, upstream=torch.tensor(1.0)))
    torch.testing.assert_close(rows, torch.full((4,), math.log(3.0), dtype=torch.float64))
    both = Inputs((leaves[0], leaves[0] * 2), upstream=torch.tensor(1.0))
    rows, _ = truth.loss(Loss("info_nce", 4, dim=4, temperature=1.0), both)
    torch.testing.assert_close(rows, torch.full((4,), math.log(math.e + 3) - 1, dtype=torch.float64))


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"{case.op}/{case.name}")
def test_blocks_and_gradients_of_the_truth(case, monkeypatch):
    inputs = case.inputs("cpu", seed=3, dtype="fp64")
    whole = truth.loss(case, inputs)
    monkeypatch.setitem(truth.BLOCK, "cpu", 3 * 40)
    torch.testing.assert_close(truth.loss(case, inputs), whole)
    mean = bound(EAGER[case.op], case, inputs)(*inputs.leaves, reduction="mean")
    grads = torch.autograd.grad(mean, inputs.leaves, inputs.upstream.double())
    torch.testing.assert_close(mean.detach(), whole[0].mean())
    torch.testing.assert_close(list(grads), whole[1])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", [*LOSSES, *OTHERS], ids=lambda case: f"{case.op}/{case.name}")
def test_ours_and_the_eager_forms_pass(case, dtype):
    gate = Gate(replace(case, dtype=dtype), "cpu", seeds=2)
    for contender in contenders(gate.case):
        if contender.compiled:
            continue
        try:
            verdict, _ = gate.judge(contender)
        except Unavailable:
            continue
        assert contender.kind != "ours" or verdict.reason is None, contender.impl
        assert contender.impl != "eager" or verdict.reason is None


WRONG = {
    "value": lambda right, *leaves, **options: right(*leaves, **options) + 1e-3,
    "scaled": lambda right, *leaves, **options: right(*leaves, **options) * 1.001,
    "gradient only": lambda right, *leaves, **options: (
        right(*leaves, **options).detach() + 1.001 * (v := right(*leaves, **options)) - 1.001 * v.detach()
    ),
    "one row": lambda right, *leaves, **options: right(
        torch.cat([leaves[0][:-1], leaves[0][-1:] * torch.linspace(1, 1.05, leaves[0].shape[1])]),
        *leaves[1:],
        **options,
    ),
    "nan": lambda right, *leaves, **options: right(*leaves, **options) * math.nan,
    "zero": lambda right, *leaves, **options: right(*leaves, **options) * 0.0,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"{case.op}/{case.name}")
def test_a_wrong_loss_is_refused(case, change):
    gate = Gate(case, "cpu", seeds=2)
    assert judged(gate, spoil(case, change)).reason.startswith("wrong: ")


def test_a_rival_in_lower_precision_is_refused_too():
    def rounded(right, *leaves, **options):
        return right(*(x.bfloat16() for x in leaves), **options).float()

    gate = Gate(LOSSES[0], "cpu")
    assert judged(gate, spoil(LOSSES[0], rounded, kind="rival")).reason.startswith("wrong: ")


def test_another_temperature_is_refused_even_in_bfloat16():
    case = replace(LOSSES[0], dtype="bf16")
    other = Contender("other", "rival", lambda c, i: bound(EAGER["nt_xent"], replace(c, temperature=0.3), i))
    assert judged(Gate(case, "cpu"), other).reason.startswith("wrong: ")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_that_does_nothing_is_refused(dtype):
    case = Perturb("pgd_step_", (8, 3, 16, 16), dtype=dtype)
    idle = Contender("idle", "ours", lambda case, inputs: lambda x_adv, grad, x: x_adv)
    assert judged(Gate(case, "cpu"), idle).reason.startswith("wrong: ")


def test_a_step_that_leaves_the_ball_by_one_bit_is_refused():
    case = Perturb("pgd_step_", (8, 3, 16, 16))

    def beyond(right, x_adv, grad, x):
        return torch.nextafter(right(x_adv, grad, x), torch.tensor(2.0)).clamp(0, 1)

    assert "beyond the ball" in judged(Gate(case, "cpu"), spoil(case, beyond)).reason


def test_random_starts_are_held_to_their_bits_and_rivals_to_their_distribution():
    case = Perturb("random_start_", (8, 3, 16, 16))
    gate = Gate(case, "cpu")
    assert "unlike the reference" in judged(gate, spoil(case, lambda right, *leaves: right(*leaves))).reason
    half = spoil(case, lambda right, x_adv, grad, x: x + 0.9 * (right(x_adv, grad, x) - x), kind="rival")
    assert "mean square" in judged(gate, half).reason


def test_topk_is_held_to_its_indices():
    case = OTHERS[1]
    shifted = spoil(case, lambda right, *leaves: ((v := right(*leaves))[0], (v[1] + 1) % case.columns))
    assert "at the indices" in judged(Gate(case, "cpu"), shifted).reason


def test_a_gate_that_finds_nan_fails():
    assert Verdict([Check("x", math.nan, 1.0)]).reason is not None
    assert Verdict([Check("x", 1.0, 1.0)]).reason is None
