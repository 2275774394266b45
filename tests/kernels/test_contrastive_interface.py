"""How the contrastive family behaves inside PyTorch: opcheck, compile, autocast, derivatives, bad arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck

from clead_kernels import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con
from clead_kernels import _arguments as arguments
from clead_kernels.contrastive.form import Form
from clead_kernels.contrastive.pairs import Pairs

pytestmark = pytest.mark.kernels

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 0, 1, 1, 2])
RULES = [
    FalseNegatives(threshold=0.2, topk=2, combine="and", treatment="attract"),
    FalseNegatives(threshold=torch.linspace(0, 1, 6), labels=LABELS, treatment="weight", weight=0.5),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck_forward(randn, dtype):
    a, b = randn(6, 3, dtype=dtype, seed=1, grad=True), randn(6, 3, dtype=dtype, seed=2, grad=True)
    temperature = torch.tensor(0.5, requires_grad=True)
    op = torch.ops.clead.contrastive.default
    for rule in RULES:
        pairs = Pairs(positive_offset=0).with_false_negatives(rule, (6, 6), CPU)
        opcheck(op, (a, b, temperature, 0.0, True, "reference", *pairs, *Form()))
    opcheck(op, (a, None, None, 0.2, False, "reference", *Pairs(self_offset=0, groups=LABELS), *Form()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck_backward(randn, dtype):
    a, b, temperature = randn(6, 3, dtype=dtype, seed=1), randn(8, 3, dtype=dtype, seed=2), torch.tensor(0.5)
    grad = randn(6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    ops, pairs = torch.ops.clead, Pairs(positive_index=torch.tensor([0, -1, 7, 7, 2, 1]))
    for needs in ([True, True, True], [True, False, False]):
        arguments_ = (a, b, temperature, 0.0, True, "reference", *pairs, *Form())
        _, _, statistics = ops.contrastive(*arguments_)
        opcheck(ops.contrastive_backward.default, (grad, statistics, *arguments_, needs))
    alone = (a, None, None, 0.5, True, "reference", *Pairs(self_offset=0, groups=LABELS), *Form())
    _, _, statistics = ops.contrastive(*alone)
    opcheck(ops.contrastive_backward.default, (grad, statistics, *alone, [True, False, False]))


ALONE = Pairs(self_offset=0, groups=LABELS)
FORMS = (
    Form("own_positive", "inside"),
    Form("negatives", metric="euclidean"),
    Form(spread=0.5),
    Form(debias=0.1, hard_negative_beta=0.5),
)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_forms(randn, form):
    a, scale = randn(6, 3, grad=True), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    opcheck(torch.ops.clead.contrastive.default, (a, None, scale, 0.0, True, "reference", *ALONE, *form))


def doors_with_forms(a, b, temperature):
    weights = b[:, 0].square()
    constant = nt_xent(a, temperature=temperature, spread=0.5, grad_candidates=False, weights=weights)
    index = torch.arange(6)
    return constant + sup_con(
        a, LABELS, candidates=b, candidate_labels=LABELS, self_index=index, positives_reduction="inside"
    )


def plain_doors(a, b, temperature):
    return (
        info_nce(a, b, temperature=temperature, positives=torch.arange(6).flip(0), reduction="sum")
        + nt_xent(a, temperature=temperature, num_views=3)
        + sup_con(a, LABELS, candidates=b, candidate_labels=LABELS, temperature=temperature, reduction="mean_valid")
        + clip_loss(a, b, temperature=temperature, reduction="none").sum()
    )


def doors_with_rules(a, b, temperature):
    # The second rule is built while compiling, from tensors that are inputs of the graph.
    built = FalseNegatives(threshold=a.detach()[:, 0].clamp(-1, 1), topk=3, treatment="attract")
    return info_nce(a, b, temperature=temperature, false_negatives=RULES[1]) + nt_xent(
        a, temperature=0.2, false_negatives=built
    )


@pytest.mark.parametrize(
    ("function", "backend"),
    [
        (plain_doors, "aot_eager"),
        (doors_with_rules, "aot_eager"),
        (doors_with_forms, "aot_eager"),
        (plain_doors, "inductor"),
    ],
)
def test_compiles_without_graph_breaks(randn, function, backend):
    inputs = (randn(6, 3, seed=1, grad=True), randn(6, 3, seed=2, grad=True), torch.tensor(0.3, requires_grad=True))
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    value, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs))


def test_compiles_for_changing_batch_sizes(randn):
    compiled = torch.compile(nt_xent, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 6, 10):
        z = randn(rows, 3, grad=True)
        ours, plain = compiled(z), nt_xent(z)
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(plain, z))


def test_compiles_with_a_temperature_schedule_and_with_a_learnable_scale(randn):
    """A changing float becomes a symbol of the graph; CLIP's scale is computed inside it."""
    a, b = randn(4, 3, seed=1), randn(4, 3, seed=2)
    compiled = torch.compile(lambda a, t: nt_xent(a, temperature=t), fullgraph=True, backend="aot_eager")
    for temperature in (0.1, 0.2, 0.3):
        torch.testing.assert_close(compiled(a, temperature), nt_xent(a, temperature=temperature))
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    clip = torch.compile(lambda s: clip_loss(a, b, temperature=1 / s.exp()), fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(clip(scale), scale)
    torch.testing.assert_close(gradient, torch.autograd.grad(clip_loss(a, b, temperature=1 / scale.exp()), scale)[0])


def test_autocast_does_not_touch_it(randn):
    a, b = randn(6, 40, dtype=torch.float32, seed=1, grad=True), randn(6, 40, dtype=torch.float32, seed=2)
    plain = info_nce(a, b)
    (gradient,) = torch.autograd.grad(plain, a)
    with torch.autocast("cpu", torch.bfloat16):
        cast = info_nce(a, b)
        half = info_nce(a.bfloat16(), b.bfloat16())
        (cast_gradient,) = torch.autograd.grad(cast, a)
    assert torch.equal(cast, plain)
    assert torch.equal(cast_gradient, gradient)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative_is_refused_in_one_sentence(randn, reduction):
    z = randn(4, 3, grad=True)
    (first,) = torch.autograd.grad(nt_xent(z, reduction=reduction).sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="clead_kernels has first derivatives only"):
        first.sum().backward()


def test_forward_mode_is_refused_instead_of_giving_zeros(randn):
    z = randn(4, 3)
    with pytest.raises(NotImplementedError, match="embeddings carries a forward-mode tangent"):
        torch.func.jvp(nt_xent, (z,), (z,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="temperature carries a forward-mode"):
        nt_xent(z, temperature=forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0)))


def test_inputs_changed_after_the_forward_are_noticed(randn):
    z = randn(4, 3, grad=True)
    held = z * 1
    loss = nt_xent(held)
    held += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode_and_no_grad(randn):
    z = randn(4, 3, grad=True)
    with torch.inference_mode():
        inside = nt_xent(z)
    with torch.no_grad():
        assert not nt_xent(z).requires_grad
    assert inside.item() == nt_xent(z).item()


def test_integer_types_of_labels(randn):
    z = randn(4, 3)
    for dtype in (torch.int32, torch.uint8):
        assert sup_con(z, torch.tensor([0, 1, 0, 1], dtype=dtype)) == sup_con(z, torch.tensor([0, 1, 0, 1]))


def test_values_are_not_read_where_that_waits_for_the_device(monkeypatch):
    class OnDevice:
        device = torch.device("cuda")

    monkeypatch.delenv("CLEAD_CHECK", raising=False)
    assert arguments.values_readable(torch.zeros(1))
    assert not arguments.values_readable(torch.zeros(1, device="meta"))
    assert not arguments.values_readable(OnDevice())
    monkeypatch.setenv("CLEAD_CHECK", "1")
    assert arguments.values_readable(OnDevice())


def test_an_index_out_of_range_that_nobody_checked_is_no_positive(randn):
    a, b = randn(3, 2, seed=1), randn(4, 2, seed=2)
    pairs = Pairs(positive_index=torch.tensor([99, -7, 1]))
    loss, count, _ = torch.ops.clead.contrastive(a, b, None, 0.1, True, "reference", *pairs, *Form())
    assert count.tolist() == [0, 0, 1]
    assert loss[:2].tolist() == [0, 0]


def test_meta_tensors_give_shapes():
    z = torch.empty(8, 3, device="meta", dtype=torch.bfloat16)
    rows = nt_xent(z, reduction="none")
    assert (rows.shape, rows.dtype, rows.device.type) == ((8,), torch.float32, "meta")


A, B = torch.ones(4, 3), torch.ones(6, 3)
FN = FalseNegatives


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: info_nce(A.numpy(), B), TypeError, "anchors must be a tensor, got ndarray"),
        (lambda: info_nce(A[0], B), ValueError, r"anchors must have shape \[rows, d\], got \[3\]"),
        (lambda: info_nce(A[None], B), ValueError, r"anchors must have shape \[rows, d\], got \[1, 4, 3\]"),
        (lambda: info_nce(A, B.long()), TypeError, "candidates must be float64, .*, got int64"),
        (lambda: info_nce(A, B.half()), TypeError, "anchors and candidates must have the same dtype, got float32 and"),
        (lambda: info_nce(A, B.to("meta")), ValueError, "anchors and candidates must be on the same device"),
        (lambda: info_nce(A, B[:, :2]), ValueError, r"same last dimension, got \[4, 3\] and \[6, 2\]"),
        (lambda: info_nce(B, A), ValueError, r"candidates must have at least as many rows as anchors \(6\), got 4"),
        (lambda: info_nce(A, B, positives=[0]), TypeError, "positives must be an integer tensor, got list"),
        (lambda: info_nce(A, B, positives=A[:, 0]), TypeError, "positives must hold integers, got float32"),
        (lambda: info_nce(A, B, positives=torch.zeros(3).long()), ValueError, r"shape \[4\], got \[3\]"),
        (lambda: info_nce(A, B, positives=torch.tensor([0, 6, 0, 0])), ValueError, r"in \[-1, 6\), found 6"),
        (lambda: info_nce(A, B, positives=torch.tensor([0, -2, 0, 0])), ValueError, r"in \[-1, 6\), found -2"),
        (lambda: info_nce(A, B, temperature=0), ValueError, "temperature must be positive and finite, got 0"),
        (lambda: info_nce(A, B, temperature=-0.1), ValueError, "temperature must be positive and finite, got -0.1"),
        (lambda: info_nce(A, B, temperature=math.inf), ValueError, "temperature must be positive .*, got inf"),
        (lambda: info_nce(A, B, temperature=torch.tensor(0.0)), ValueError, "temperature must be positive"),
        (lambda: info_nce(A, B, temperature=torch.tensor(1)), ValueError, "0-d floating-point tensor, got .* int64"),
        (lambda: info_nce(A, B, temperature=None), TypeError, "temperature must be a float or a 0-d tensor, got None"),
        (lambda: info_nce(A, B, reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none', got"),
        (lambda: info_nce(A, B, reduction="mean_valid"), ValueError, "reduction must be one of .*'none', got 'mean_v"),
        (lambda: info_nce(A, B, impl="triton"), NotImplementedError, "impl='triton' cannot run info_nce on cpu"),
        (lambda: info_nce(A, B, impl="fast"), ValueError, "impl must be one of .*, got 'fast'"),
        (lambda: info_nce(A, B, false_negatives=0.8), TypeError, "false_negatives must be a FalseNegatives or None"),
        (lambda: info_nce(A, B, false_negatives=FN(labels=torch.zeros(4).long())), ValueError, "labels must be a pair"),
        (
            lambda: info_nce(A, B, false_negatives=FN(labels=(torch.zeros(4).long(), torch.zeros(4).long()))),
            ValueError,
            r"labels\[1\] must have shape \[6\], got \[4\]",
        ),
        (
            lambda: info_nce(A, B, false_negatives=FN(threshold=torch.zeros(6))),
            ValueError,
            r"threshold must have one value per row, \[4\], got \[6\]",
        ),
        (lambda: nt_xent(A[:3]), ValueError, "embeddings must have num_views = 2 rows per image, got 3 rows"),
        (lambda: nt_xent(A, num_views=1), ValueError, r"num_views must be in \[2, 4\], got 1"),
        (lambda: nt_xent(A, num_views=2.0), TypeError, "num_views must be an integer, got float"),
        (lambda: nt_xent(A, false_negatives=FN(labels=torch.zeros(3).int())), ValueError, r"\[4\] or \[2\], got \[3\]"),
        (
            lambda: nt_xent(A, impl="triton", false_negatives=FN(topk=1)),
            NotImplementedError,
            "impl='triton' cannot run nt_xent",
        ),
        (lambda: sup_con(A, torch.zeros(3).long()), ValueError, r"labels must have shape \[4\], got \[3\]"),
        (lambda: sup_con(A, torch.zeros(4)), TypeError, "labels must hold integers, got float32"),
        (lambda: sup_con(A, torch.zeros(4).long().to("meta")), ValueError, "labels must be on cpu like the embeddings"),
        (lambda: sup_con(A, torch.zeros(4).long(), candidates=B), ValueError, "candidates need candidate_labels"),
        (lambda: sup_con(A, torch.zeros(4).long(), candidate_labels=A), ValueError, "but candidates is None"),
        (lambda: sup_con(A, torch.zeros(4).long(), reduction="max"), ValueError, "'none', 'mean_valid', got 'max'"),
        (lambda: clip_loss(A, B), ValueError, "a and b must have the same number of rows, got 4 and 6"),
        (lambda: FN(), ValueError, "FalseNegatives needs a rule: give threshold, topk or labels"),
        (lambda: FN(threshold=1.5), ValueError, r"threshold must be a cosine in \[-1, 1\] .*, got 1.5"),
        (lambda: FN(threshold=math.nan), ValueError, r"threshold must be a cosine in \[-1, 1\] .*, got nan"),
        (lambda: FN(threshold="high"), TypeError, "threshold must be a float or a tensor, got str"),
        (lambda: FN(threshold=torch.tensor([0.1, 7.0])), ValueError, "threshold must hold cosines .*, found 7.0"),
        (lambda: FN(threshold=torch.zeros(2, 2)), ValueError, r"threshold must be .*, got \[2, 2\]"),
        (lambda: FN(topk=0), ValueError, "topk must be at least 1, got 0"),
        (lambda: FN(topk=1.5), TypeError, "topk must be an integer, got float"),
        (lambda: FN(threshold=0.5, combine="xor"), ValueError, "combine must be one of 'or', 'and', got 'xor'"),
        (lambda: FN(threshold=0.5, treatment="drop"), ValueError, "treatment must be one of .*, got 'drop'"),
        (lambda: FN(threshold=0.5, treatment="weight", weight=-1), ValueError, "weight must be finite and at least 0"),
        (lambda: FN(threshold=0.5, weight=0.5), ValueError, "weight is for treatment='weight' only"),
        (lambda: nt_xent(A, false_negatives=FN(labels=(LABELS,))), ValueError, "got a tuple of 1"),
    ],
)
def test_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
