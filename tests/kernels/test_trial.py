"""Kernels on trial: believed where they agree with the reference, else the reference with one warning, and no trace.

A GPU's kernels are on trial. Here those of the CPU are put there: the C++ ones, or Triton's where it interprets.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from clead_kernels import (
    FalseNegatives,
    _native,
    _trial,
    dispatch,
    explain,
    info_nce,
    instance_margin,
    nt_xent,
    pgd_step_,
    project_,
    similarity,
    similarity_topk,
)
from clead_kernels.contrastive import margin, ops
from clead_kernels.perturb import ops as perturb_ops
from clead_kernels.similarity import ops as similarity_ops
from tests.kernels.trial_cases import CASES, tensors

IMPL = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "native"
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(IMPL == "native" and not _native.available(), reason="the extension is not built"),
]


@pytest.fixture(autouse=True)
def on_trial(monkeypatch):
    """Kernels of the CPU on trial, and nothing found yet; a warning of ours is an error."""
    rows = {}
    for op, of_op in dispatch._ROWS.items():
        kernels = [replace(row, on_trial=True) for row in of_op if row.impl == IMPL and "cpu" in row.devices]
        rows[op] = (*kernels, *(row for row in of_op if row.impl == "reference"))
    monkeypatch.setattr(dispatch, "_ROWS", rows)
    monkeypatch.setattr(_trial, "_findings", {})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*choose by hand", RuntimeWarning)  # NumPy, which interprets, has others
        yield


@pytest.fixture
def counted(monkeypatch):
    """How often the losses ran forward, by implementation."""
    counts = dict.fromkeys(ops._FORWARD, 0)

    def counting(impl, forward):
        def call(*arguments):
            counts[impl] += 1
            return forward(*arguments)

        return call

    monkeypatch.setattr(ops, "_FORWARD", {impl: counting(impl, forward) for impl, forward in ops._FORWARD.items()})
    return counts


@pytest.fixture
def spoilt(monkeypatch):
    """``spoilt(table, how)``: what the kernel in that table returns goes through ``how``."""

    def spoil(table, how):
        right = table[IMPL]
        monkeypatch.setitem(table, IMPL, lambda *arguments: how(right(*arguments)))

    return spoil


def larger(results):
    return (results[0] * 1.01, *results[1:])


def found():
    return [finding.taken for finding in _trial._findings.values()]


def loss_and_grads(impl="auto", **options):
    made = tensors(torch.float32)
    loss = info_nce(made["a"], made["b"], impl=impl, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (made["a"], made["b"]))


def same(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_right_kernels_agree_and_are_taken(case, dtype):
    op, call = CASES[case]
    if not any(row.impl == IMPL and row.covers(torch.device("cpu"), dtype, {}) for row in dispatch._ROWS[op]):
        pytest.skip(f"{op} has no {IMPL} kernel for {dtype}")
    call(tensors(dtype))
    assert found() == [IMPL]
    call(tensors(dtype))
    assert len(found()) == 1
    assert explain(op, dtype=dtype).splitlines()[:1] == [f"{op} on cpu {str(dtype)[6:]}: {IMPL}"]
    assert "taken for 1 of 1 kinds of calls that were tried" in explain(op, dtype=dtype)


native_only = pytest.mark.skipif(IMPL != "native", reason="small Triton calls are no op of the tables that are spoilt")


@native_only
def test_a_settled_kind_makes_no_call_of_the_reference(counted):
    loss_and_grads()
    assert counted == {"reference": 1, "native": 2, "triton": 0}  # the trial's two, and the call
    loss_and_grads()
    assert counted == {"reference": 1, "native": 3, "triton": 0}
    loss_and_grads(temperature=0.3)  # no other kernel
    assert len(found()) == 1
    with torch.no_grad():
        nt_xent(tensors(torch.float32)["a"])
    assert len(found()) == 2


@native_only
@pytest.mark.parametrize("table", ["_FORWARD", "_BACKWARD"])
def test_a_wrong_kernel_warns_once_and_the_reference_is_taken(spoilt, counted, table):
    expected = loss_and_grads("reference")
    spoilt(getattr(ops, table), larger)
    asked = r"info_nce: native on cpu, with torch.float32 \[24, 20\], \[24, 20\], differs from the reference by "
    with pytest.warns(RuntimeWarning, match=asked + r"[\d.]+e-0[23] of its size, .* impl='reference' or impl='native'"):
        results = loss_and_grads()
    same(results, expected)
    same(loss_and_grads(), expected)
    assert counted == {"reference": 5, "native": 1, "triton": 0}  # here, two, float64 and two; the kernel no more
    assert found() == ["reference"]
    text = explain("info_nce")
    assert text.startswith("info_nce on cpu float32: reference")
    assert "taken for 0 of 1 kinds of calls that were tried; one differs from the reference by" in text


@native_only
@pytest.mark.parametrize("table", ["_FORWARD", "_BACKWARD"])
def test_a_kernel_that_raises_warns_once_and_the_reference_is_taken(spoilt, table):
    def refuse(_):
        raise RuntimeError("no kernel image is available\nfor this device")

    expected = loss_and_grads("reference")
    spoilt(getattr(ops, table), refuse)
    with pytest.warns(RuntimeWarning, match=r"raised RuntimeError \(no kernel image is available\)\. impl='auto'"):
        same(loss_and_grads(), expected)
    same(loss_and_grads(), expected)
    with pytest.raises(RuntimeError, match="no kernel image"):
        loss_and_grads("native")


@native_only
def test_nan_and_infinity_must_be_where_the_reference_has_them(spoilt):
    def poisoned(made):
        with torch.no_grad():
            made["a"][3] = torch.nan
        return info_nce(made["a"], made["b"], reduction="none")

    assert poisoned(tensors(torch.float32)).isnan().sum() == 1
    assert found() == ["native"]
    spoilt(ops._FORWARD, lambda results: (results[0].nan_to_num(1.0), *results[1:]))
    _trial._findings.clear()
    with pytest.warns(RuntimeWarning, match="differs from the reference by inf of its size"):
        assert poisoned(tensors(torch.float32)).isnan().sum() == 1


@native_only
def test_pairs_at_a_threshold_may_fall_on_either_side(spoilt):
    """One row of many may be off where cosines are compared, and nowhere else."""

    def one_row(results):
        rows = results[0].clone()
        rows[7] *= 2
        return (rows, *results[1:])

    spoilt(ops._FORWARD, one_row)
    made = tensors(torch.float32, rows=128)
    with torch.no_grad():
        nt_xent(made["a"], false_negatives=FalseNegatives(threshold=0.3), reduction="none")
        assert found() == ["native"]
        with pytest.warns(RuntimeWarning, match="nt_xent: native"):
            nt_xent(made["a"], reduction="none")


@pytest.mark.parametrize("temperature", [0.5, 1e-3, 1e-5])
@pytest.mark.parametrize("kind", ["usual", "long", "alike", "few"])
def test_what_rounding_explains_is_no_error(kind, temperature):
    x = tensors(torch.float32, rows=2 if kind == "few" else 48)["a"].detach()
    x = {"usual": x, "long": 100 * x, "alike": x[:1] + 1e-6 * x, "few": x}[kind].requires_grad_()
    nt_xent(x, temperature=temperature)
    nt_xent(x, temperature=temperature * len(x), normalize=False)
    similarity(x, x, temperature=temperature)
    instance_margin(x, x.flip(0), temperature=temperature)
    assert set(found()) == {IMPL}


@native_only
def test_the_margin_is_judged_by_the_similarities_it_compares(monkeypatch):
    made = tensors(torch.float32)
    twice = torch.cat([made["b"], made["b"]]).detach()  # every candidate ties with its copy
    instance_margin(made["a"], twice, positives=torch.zeros(24, dtype=torch.int64))
    assert found() == ["native"]
    monkeypatch.setattr(margin, "_find_hardest", lambda a, b, index, hardest: hardest.zero_())
    with pytest.warns(RuntimeWarning, match="instance_margin: native"):
        instance_margin(made["a"].detach(), made["b"])


@native_only
def test_indices_of_topk_are_judged_by_the_values_they_point_at(spoilt):
    made = tensors(torch.float32)
    twice = torch.cat([made["b"], made["b"]]).detach()
    spoilt(similarity_ops._TOPK, lambda results: (results[0], (results[1] + 24) % 48))  # the copy instead
    similarity_topk(made["a"], twice, 4)
    assert found() == ["native"]
    for wrong in (lambda index: index.roll(1, 0), lambda index: index + 10**9, lambda index: -1 - index):
        _trial._findings.clear()
        spoilt(similarity_ops._TOPK, lambda results, wrong=wrong: (results[0], wrong(results[1])))
        with pytest.warns(RuntimeWarning, match="similarity_topk: native"):
            _, indices = similarity_topk(made["a"], made["b"], 4)
        assert torch.equal(indices, similarity_topk(made["a"], made["b"], 4, impl="reference")[1])


@native_only
@pytest.mark.parametrize("right", [True, False])
def test_steps_write_once(monkeypatch, right):
    made, wanted = tensors(torch.float32), tensors(torch.float32)
    step = {"eps": 0.1, "step_size": 0.05, "norm": "l2"}
    pgd_step_(wanted["x_adv"], wanted["grad"], wanted["image"], momentum_buffer=wanted["buffer"], **step, impl="native")
    if not right:
        native = perturb_ops.PGD_STEP["l2"]["native"]

        def wrong(x_adv, *rest):
            native(x_adv, *rest)
            x_adv[0, 0, 0, 0] += 0.01

        monkeypatch.setitem(perturb_ops.PGD_STEP["l2"], "native", wrong)
    versions = [made[name]._version for name in ("x_adv", "buffer", "grad", "image")]
    for x in (made["x_adv"].transpose(2, 3), made["x_adv"]):  # strides are kept
        _trial._findings.clear()
        before = x.clone()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            returned = pgd_step_(x, made["grad"], made["image"], momentum_buffer=made["buffer"].clone(), **step)
        assert returned is x and len(caught) == (0 if right else 1)
        if x is not made["x_adv"]:
            x.copy_(before)
    assert torch.equal(made["x_adv"], wanted["x_adv"])
    pgd_step_(made["x_adv"].clone(), made["grad"], made["image"], momentum_buffer=made["buffer"], **step)
    assert torch.equal(made["buffer"], wanted["buffer"])
    assert [made[name]._version for name in ("x_adv", "buffer", "grad", "image")] == [
        versions[0] + 3, versions[1] + 1, *versions[2:]
    ]  # fmt: skip


def test_a_trial_leaves_no_trace():
    made = tensors(torch.float32)
    seen: list[Tensor] = []
    for x in made.values():
        if x.requires_grad:
            x.register_hook(seen.append)
    rows = made["a"] * 1
    random, versions = torch.get_rng_state(), [x._version for x in made.values()]
    loss = info_nce(rows, made["b"])
    assert torch.equal(random, torch.get_rng_state())
    assert not seen and made["a"].grad is None and made["b"].grad is None
    assert versions == [x._version for x in made.values()]
    loss.backward()
    assert len(seen) == 2


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.autograd.detect_anomaly,
        lambda: torch.device("cpu"),  # a mode of functions, not of ops
        lambda: torch.autograd.graph.save_on_cpu(),
        lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
    ],
)
def test_where_a_trial_is_possible(context):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = context()  # anomaly mode warns
    made = tensors(torch.float32)
    with mode:
        for case in ("rows of info_nce", "similarity", "similarity_topk", "project_"):
            CASES[case][1](made)
    assert found() == [IMPL] * (4 if IMPL == "native" else 3)  # project_ is not written in Triton


def test_grad_of_one_side_alone():
    made = tensors(torch.float32)
    (expected,) = torch.autograd.grad(info_nce(made["a"], made["b"].detach(), impl="reference"), made["a"])
    (grad,) = torch.autograd.grad(info_nce(made["a"], made["b"].detach()), made["a"])
    assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-7)
    info_nce(made["a"].detach(), made["b"]).backward()
    assert found() == [IMPL] * 2


def test_within_backward_and_recomputed_layers():
    made = tensors(torch.float32)
    losses = []
    doubled = made["a"] * 2

    def attack(_):
        with torch.enable_grad():
            losses.append(nt_xent(made["b"]))

    doubled.register_hook(attack)
    doubled.sum().backward()
    assert found() == [IMPL] and losses[0].requires_grad
    _trial._findings.clear()
    checkpoint(lambda x: info_nce(x, made["b"]).exp(), made["a"], use_reentrant=False).backward()
    assert found() == [IMPL]


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


@native_only
@pytest.mark.parametrize("where", ["mode", "transform", "trace", "fake", "empty", "no candidates"])
def test_where_no_trial_is_possible_the_reference_runs_until_one_was(counted, where):
    made = tensors(torch.float32)
    a, b = made["a"].detach(), made["b"].detach()

    def call():
        if where == "mode":
            with Watching():
                info_nce(a, b)
        elif where == "transform":
            torch.func.grad(lambda x: info_nce(x, b))(a)
        elif where == "trace":
            torch.jit.trace(lambda x, y: info_nce(x, y), (a, b), check_trace=False)
        elif where == "fake":
            with FakeTensorMode() as mode:
                info_nce(mode.from_tensor(a), mode.from_tensor(b))
        elif where == "empty":
            info_nce(a[:0], b)
        else:
            info_nce(a, b[:0], positives=torch.full([24], -1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    assert not found() and not counted["native"]
    info_nce(a, b)
    info_nce(made["a"], b)
    assert found() == ["native"] * 2
    before = dict(counted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    if where in ("mode", "transform", "trace"):
        assert counted["reference"] == before["reference"]


@native_only
@pytest.mark.parametrize("known", [False, True])
def test_compiled_calls_take_what_was_known(counted, known):
    made = tensors(torch.float32)
    torch.compiler.reset()
    if known:
        info_nce(made["a"], made["b"])
        pgd_step_(made["x_adv"].clone(), made["grad"], made["image"], eps=0.1, step_size=0.1)
    counted.update(dict.fromkeys(counted, 0))
    compiled = torch.compile(lambda x, y: info_nce(x, y), fullgraph=True, backend="aot_eager", dynamic=True)
    loss = compiled(made["a"], made["b"])
    loss.backward()
    assert counted == {"reference": not known, "native": known, "triton": 0}
    step = torch.compile(pgd_step_, fullgraph=True, backend="aot_eager")
    x_adv = made["x_adv"].clone()
    step(x_adv, made["grad"], made["image"], eps=0.1, step_size=0.1)
    expected = pgd_step_(made["x_adv"], made["grad"], made["image"], eps=0.1, step_size=0.1, impl="reference")
    assert torch.equal(x_adv, expected)
    assert loss.item() == pytest.approx(info_nce(made["a"], made["b"], impl="reference").item())


@native_only
@pytest.mark.parametrize("refused", [False, True])
def test_large_matrices_are_no_trial_but_heed_smaller_ones(counted, monkeypatch, spoilt, refused):
    if refused:
        spoilt(ops._BACKWARD, larger)
        with pytest.warns(RuntimeWarning, match="choose by hand"):
            loss_and_grads()
    counted.update(dict.fromkeys(counted, 0))
    monkeypatch.setattr(_trial, "large", lambda rows, columns: True)
    loss_and_grads()
    assert counted == {"reference": refused, "native": not refused, "triton": 0} and len(found()) == refused


A, B = torch.randn(6, 8), torch.randn(70, 8)
IMAGES = torch.rand(2, 3, 8, 8)


@native_only
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: nt_xent(A, temperature=0.5), lambda: nt_xent(A, temperature=0.01)),  # one offset for all, or one each
        (lambda: nt_xent(A, num_views=2), lambda: nt_xent(A, num_views=3)),
        (lambda: nt_xent(A), lambda: nt_xent(A.clone().requires_grad_())),
        (lambda: nt_xent(A), lambda: nt_xent(torch.randn(6, 64))),
        (lambda: nt_xent(A), lambda: nt_xent(B)),
        (
            lambda: nt_xent(B, false_negatives=FalseNegatives(topk=15)),
            lambda: nt_xent(B, false_negatives=FalseNegatives(topk=16)),
        ),
        (lambda: similarity_topk(A, B, 16), lambda: similarity_topk(A, B, 17)),
        (
            lambda: project_(IMAGES.clone(), IMAGES, eps=0.1, norm="l2"),
            lambda: project_(IMAGES.repeat(1, 1, 9, 9), IMAGES.repeat(1, 1, 9, 9), eps=0.1, norm="l2"),
        ),
    ],
    ids=["temperature", "views", "gradient", "width", "rows", "topk", "k", "pixels"],
)
def test_what_picks_another_kernel_is_another_kind(one, other):
    one()
    one()
    assert len(found()) == 1
    other()
    assert len(found()) == 2


def test_a_matrix_is_large_above_a_gibibyte():
    assert not _trial.large(65_536, 4_096) and _trial.large(65_536, 4_097)


@native_only
@pytest.mark.parametrize(("impl", "who"), [("reference", "the reference"), ("native", "both together")])
def test_a_trial_without_memory_leaves_the_kernel(impl, who, monkeypatch):
    right, left = ops._FORWARD[impl], [torch.OutOfMemoryError("CUDA out of memory")]

    def exhausted(*arguments):
        if left:
            raise left.pop()
        return right(*arguments)

    monkeypatch.setitem(ops._FORWARD, impl, exhausted)
    loss_and_grads()
    assert found() == ["native"]
    assert f"one was not tried, since {who} ran out of memory" in explain("info_nce")


@native_only
def test_errors_of_the_caller_are_no_finding(monkeypatch):
    def refuse(*_):
        raise RuntimeError("what the caller did wrong")

    monkeypatch.setitem(ops._FORWARD, "reference", refuse)
    with pytest.raises(RuntimeError, match="what the caller did wrong"):
        loss_and_grads()
    assert not found()


def test_named_implementations_are_never_tried():
    made = tensors(torch.float32)
    for impl in (IMPL, "reference"):
        nt_xent(made["a"], impl=impl)
        project_(made["x_adv"], made["image"], eps=0.1, impl="reference")
    assert not found()
