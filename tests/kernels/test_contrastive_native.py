"""The contrastive family in C++: the numerical bar, agreement with the reference, fixed order, instruction sets."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, _native, clip_loss, info_nce, nt_xent, sup_con
from clead_kernels.contrastive import native, reference
from clead_kernels.contrastive.form import Form
from clead_kernels.contrastive.pairs import Pairs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}"),
]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 7, 64, 127, 128, 129, 1000, 2049)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(high, size, seed=0, low=0):
    return torch.randint(low, high, (size,), generator=torch.Generator().manual_seed(seed))


def rule_of(name, m, n, clusters):
    """A false-negative rule for M anchors and N candidates; ``clusters``: whether as a pair."""
    if name == "none":
        return None
    labels = whole(max(2, m // 4), m, seed=5, low=-1)
    labels = (labels, whole(max(2, m // 4), n, seed=6, low=-1)) if clusters else labels
    rows = numbers(m, seed=7).clamp(-1, 1)
    return {
        "threshold": FalseNegatives(threshold=0.1),
        "scalar tensor": FalseNegatives(threshold=torch.tensor(0.2)),
        "rows": FalseNegatives(threshold=rows.abs()),
        "clusters": FalseNegatives(labels=labels),
        "or": FalseNegatives(threshold=rows.abs(), labels=labels),
        "and": FalseNegatives(threshold=0.0, labels=labels, combine="and"),
        "weight": FalseNegatives(threshold=rows, treatment="weight", weight=0.3),
        "weight 0": FalseNegatives(labels=labels, treatment="weight", weight=0.0),
        "topk": FalseNegatives(topk=5),
        "topk, or": FalseNegatives(topk=3, threshold=rows.abs(), labels=labels, treatment="weight", weight=0.6),
        "topk, and": FalseNegatives(topk=60, threshold=-0.1, combine="and"),
    }[name]


RULES = (
    "none",
    "threshold",
    "scalar tensor",
    "rows",
    "clusters",
    "or",
    "and",
    "weight",
    "weight 0",
    "topk",
    "topk, or",
    "topk, and",
)


def classes(a, **options):
    return sup_con(a, whole(4, len(a)), **options)


# Each door as (its loss of anchors a and candidates b, does it use b, must b be as long as a).
DOORS = {
    "nt_xent": (lambda a, b, **k: nt_xent(a, **k), False, True),
    "sup_con": (lambda a, b, **k: sup_con(a, whole(4, len(a)), **k), False, True),
    "sup_con, pairs": (lambda a, b, **k: sup_con(a, torch.arange(len(a)) * 10**12 // 2, **k), False, True),
    "sup_con, candidates": (
        lambda a, b, **k: sup_con(a, whole(4, len(a)), candidates=b, candidate_labels=whole(6, len(b), 1), **k),
        True,
        False,
    ),
    "info_nce, index": (lambda a, b, **k: info_nce(a, b, positives=whole(len(b), len(a), low=-1), **k), True, False),
    "info_nce": (info_nce, True, True),
    "clip_loss": (clip_loss, True, True),
    "clip_loss, decoupled": (lambda a, b, **k: clip_loss(a, b, denominator="negatives", **k), True, True),
    "nt_xent, constant": (lambda a, b, **k: nt_xent(a, grad_candidates=False, **k), False, True),
    "nt_xent, 3 views, inside": (
        lambda a, b, **k: nt_xent(a, num_views=3, positives_reduction="inside", **k),
        False,
        True,
    ),
    "nt_xent, 3 views, own": (lambda a, b, **k: nt_xent(a, num_views=3, denominator="own_positive", **k), False, True),
    "nt_xent, 3 views, own inside": (
        lambda a, b, **k: nt_xent(a, num_views=3, denominator="own_positive", positives_reduction="inside", **k),
        False,
        True,
    ),
    "nt_xent, 3 views, spread": (lambda a, b, **k: nt_xent(a, num_views=3, spread=0.5, **k), False, True),
    "sup_con, inside": (lambda a, b, **k: classes(a, positives_reduction="inside", **k), False, True),
    "sup_con, decoupled": (lambda a, b, **k: classes(a, denominator="negatives", **k), False, True),
    "sup_con, decoupled inside": (
        lambda a, b, **k: classes(a, denominator="negatives", positives_reduction="inside", **k),
        False,
        True,
    ),
    "sup_con, spread": (lambda a, b, **k: classes(a, spread=2.0, **k), False, True),
    "sup_con, self": (
        lambda a, b, **k: sup_con(
            a,
            whole(4, len(a)),
            candidates=b,
            candidate_labels=whole(4, len(b), 1),
            self_index=whole(len(b), len(a), 2, low=-1),
            **k,
        ),
        True,
        False,
    ),
    "info_nce, spread": (
        lambda a, b, **k: info_nce(a, b, positives=whole(len(b), len(a), low=-1), spread=1.0, **k),
        True,
        False,
    ),
}


PLAIN = tuple(DOORS)[:7]


def rules_of(door):
    return RULES if door in PLAIN else ("none", "weight", "topk, or")


def differentiate(door, a, b, temperature, **options):
    """Row losses and the gradients of their weighted sum w.r.t. anchors, candidates and temperature."""
    loss, _, _ = DOORS[door]
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    scale = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    rows = loss(a, b, temperature=scale, reduction="none", **options)
    weights = torch.linspace(0.5, 1.5, len(rows), dtype=rows.dtype)
    grads = torch.autograd.grad(rows, (a, b, scale), weights, allow_unused=True)
    return [rows.detach(), *(grad for grad in grads if grad is not None)]


def agree(door, rule, m, n, d, temperature, dtype, normalize=True):
    """``native`` against the reference in float64, with the same rounded inputs."""
    _, two_sets, alike = DOORS[door]
    m += -m % 3 if "views" in door else m % 2 if door.startswith("nt_xent") else 0
    n = m if alike else n
    a, b = numbers(m, d, seed=1, dtype=dtype), numbers(n, d, seed=2, dtype=dtype)
    given = rule_of(rule, m, n, two_sets)
    options = {"false_negatives": given, "normalize": normalize}
    ours = differentiate(door, a, b, temperature, impl="native", **options)
    truth = differentiate(door, a.double(), b.double(), temperature, impl="reference", **options)
    assert len(ours) == len(truth)
    # A float32 dot product of unit rows is off by about 1e-7, its exponential by that over the temperature.
    size = 1 if normalize else d
    logit = 3e-14 if dtype == torch.float64 else 4e-7
    for index, (value, expected) in enumerate(zip(ours, truth, strict=True)):
        gradient = index in (1, 2) and value.dim() == 2
        unit = torch.finfo(value.dtype).eps if gradient else 0
        floor = 1e-3 * (d == 1 or expected.norm() < 1e-30)
        if index == 0 and "decoupled" in door:  # differences of logits, which may be anywhere near 0
            floor = m**0.5 / temperature
        error = (value.double() - expected).norm() / (expected.norm() + floor)
        # In one dimension nothing is left of a gradient, in two not much.
        bound = unit + logit * (2 + size / temperature) * {1: 1e3, 2: 20.0}.get(d, 1.0)
        if gradient:  # numbers of float16 below its smallest normal one
            bound += unit * torch.finfo(value.dtype).tiny * value.numel() ** 0.5 / float(expected.norm() + 1e-30)
        if value.dim() == 0:  # rows of both signs cancel in the temperature's gradient
            bound += logit * m * size**2 * (1 + 1 / temperature) / temperature / float(expected.abs() + 1e-30)
            if dtype == torch.bfloat16:  # rounded before the second product
                bound += 2**-8 + 2**-13 * m * (size / temperature) ** 2 / float(expected.abs() + 1e-30)
        assert error <= bound, (door, rule, m, n, d, temperature, dtype, normalize, index, float(error))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("door", DOORS)
def test_agrees_with_the_reference(door, dtype):
    for rule, temperature in product(rules_of(door), (0.005, 0.1, 10.0)):
        agree(door, rule, 130, 75, 33, temperature, dtype)
        agree(door, rule, 24, 220, 7, temperature, dtype, normalize=False)


@pytest.mark.parametrize("door", DOORS)
def test_odd_sizes(door):
    """Around the vector, strip and block sizes, in every dimension once."""
    for index, (m, n) in enumerate(product((1, 2, 7, 64, 127, 128, 129), (1, 129, 300))):
        agree(door, "or" if index % 2 else "none", m, n, (1, 2, 7, 127, 129)[index % 5], 0.5, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("door", DOORS)
def test_all_sizes(door, dtype):
    for m, n, d in product(SIZES, repeat=3):
        if max(m * n, m * d, n * d) < 2**20 + 2**10 and (not DOORS[door][2] or m == n):
            # Among so many pairs some cosine is within rounding of any threshold. In one dimension all cosines are
            # 1 or -1: ties, which products of bfloat16 rows, scaled afterwards, need not keep.
            tied = d == 1 and dtype == torch.bfloat16
            rules = RULES if m * n < 2**15 and not tied else ("none", "clusters", "weight 0")
            temperature = (0.005, 0.02, 0.1, 1.0, 10.0)[(m + d) % 5]
            agree(door, rules[(m + n + d) % len(rules)], m, n, d, temperature, dtype)


def eager(a, b, positive, excluded, temperature):
    logits = F.normalize(a) @ F.normalize(b).T / temperature
    denominator = logits.masked_fill(excluded, -math.inf).logsumexp(1)
    return denominator - (logits * positive).sum(1) / positive.sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.02])
@pytest.mark.parametrize("door", ["nt_xent", "sup_con", "info_nce"])
def test_numerical_bar(door, temperature, dtype):
    """contracts.md section 8, over five seeds, at a size of several blocks."""
    rows, width = 320, 64
    eye = torch.eye(rows, dtype=torch.bool)
    images, labels = torch.arange(rows) % (rows // 2), whole(4, rows)
    groups = {"nt_xent": images, "sup_con": labels, "info_nce": torch.arange(rows)}[door]
    positive, excluded = groups[:, None] == groups[None, :], torch.zeros_like(eye)
    if door != "info_nce":
        positive, excluded = positive & ~eye, eye

    def measure(loss, a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        scale = torch.tensor(temperature, dtype=torch.float64 if a.dtype == torch.float64 else torch.float32)
        scale.requires_grad_()
        out = loss(a, b if door == "info_nce" else a, scale)
        grads = torch.autograd.grad(out, (a, b, scale), torch.full_like(out, 1 / rows), allow_unused=True)
        return [out.detach().double(), *(grad.double() for grad in grads if grad is not None)]

    ours, rivals, truths = [], [], []
    for seed in range(5):
        half = numbers(rows // 2, width, seed=seed)
        a = torch.cat([half, half + numbers(rows // 2, width, seed=seed + 50)]).to(dtype)
        b = (a + numbers(rows, width, seed=seed + 100)).to(dtype)
        truth = measure(lambda a, b, t: eager(a, b, positive, excluded, t), a.double(), b.double())
        rival = measure(lambda a, b, t: eager(a, b, positive, excluded, t), a, b)
        mine = measure(lambda a, b, t: DOORS[door][0](a, b, temperature=t, reduction="none", impl="native"), a, b)
        truths.append(truth)
        ours.append([x - y for x, y in zip(mine, truth, strict=True)])
        rivals.append([x - y for x, y in zip(rival, truth, strict=True)])
    for index in range(len(truths[0])):
        unit = torch.finfo(dtype if truths[0][index].dim() == 2 else torch.float32).eps / 2
        truth, mine, rival = (torch.cat([run[index].flatten() for run in runs]) for runs in (truths, ours, rivals))
        assert mine.norm() <= max(1.5 * rival.norm(), 8 * unit * truth.norm()), index
        assert mine.abs().max() <= max(2 * rival.abs().max(), 16 * unit * truth.abs().max()), index


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("door", DOORS)
def test_bits_depend_on_neither_run_nor_threads(door, dtype):
    a, b = numbers(462, 40, seed=1, dtype=dtype), numbers(462, 40, seed=2, dtype=dtype)
    rule = FalseNegatives(topk=7) if "," in door else FalseNegatives(threshold=0.3)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 5):
            torch.set_num_threads(count)
            runs.append(differentiate(door, a, b, 0.1, impl="native", false_negatives=rule))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(runs[0], run, strict=True))


def compare_all() -> None:
    for door, dtype in product(DOORS, (torch.float64, torch.float32, torch.bfloat16)):
        rules = (("threshold", 0.1), ("or", 0.1), ("and", 0.02)) if door in PLAIN else (("topk, or", 0.1),)
        for rule, temperature in (("none", 0.5), ("none", 0.01), *rules):
            agree(door, rule, 106, 130, 45, temperature, dtype)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set(isa, printed_on):
    code = (
        "import test_contrastive_native as t; t.compare_all(); i = t._native.build_info(); print(i['isa'], i['bf16'])"
    )
    printed = printed_on(isa, code)
    used = [isa, "none"] if isa in ("baseline", "avx2", "avx512") else ["avx512", isa]
    assert printed.split() == used


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.03, 0.1])
def test_extreme_rows(temperature):
    """An antipodal row, tight clusters, duplicates and a zero row in one batch, against float64."""
    z = numbers(200, 16, seed=3, dtype=torch.float32)
    z[50:100] = z[0] + 0.01 * z[50:100]
    z[100:120] = z[1]
    z[120] = -z[0]
    z[121] = 0
    for door in ("nt_xent", "sup_con"):
        ours = differentiate(door, z, z, temperature, impl="native")
        truth = differentiate(door, z.double(), z.double(), temperature, impl="reference")
        for value, expected in zip(ours, truth, strict=True):
            assert (value.double() - expected).norm() <= 1e-6 / temperature * expected.norm()
        assert (ours[1][121] == 0).all()


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**40])
@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.5])
def test_the_scale_of_the_upstream_gradient_does_not_matter(scale, temperature):
    z = numbers(64, 8, dtype=torch.float32).requires_grad_()
    loss = nt_xent(z, temperature=temperature, impl="native")
    (grad,) = torch.autograd.grad(loss, z, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * scale, z)
    assert torch.equal(scaled, grad * scale)


@pytest.mark.parametrize("dtype", FLOATS)
def test_huge_logits(dtype):
    """Dot products of 65504**2 and subnormal numbers of float16, without normalisation."""
    z = torch.tensor([[6e-8, 1.0, 65504.0], [2e-5, -3e-5, 6e-8], [1.0, 2.0, -65504.0]], dtype=dtype)
    for door in ("info_nce", "sup_con"):
        tolerance = {torch.float64: 1e-12, torch.bfloat16: 2**-7}.get(dtype, 1e-3)
        ours = differentiate(door, z, z.flip(0), 0.5, normalize=False, impl="native")
        expected = differentiate(door, z, z.flip(0), 0.5, normalize=False, impl="reference")
        for x, y in zip(ours, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance / 2 * float(y.abs().max()) + 1e-30)


def test_a_dominant_positive_keeps_full_relative_accuracy():
    half = numbers(100, 16, dtype=torch.float32)
    z = torch.cat([half, half + 0.05 * numbers(100, 16, seed=1, dtype=torch.float32)])
    for temperature in (0.1, 0.025, 0.02):
        ours = differentiate("nt_xent", z, z, temperature, impl="native")
        truth = differentiate("nt_xent", z.double(), z.double(), temperature, impl="reference")
        for value, expected in zip(ours, truth, strict=True):
            assert (value.double() - expected).norm() <= 3e-7 / temperature * expected.norm()


def test_gradients_only_where_they_are_needed():
    a, b = numbers(40, 5, seed=1).requires_grad_(), numbers(70, 5, seed=2).requires_grad_()
    scale = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    positives = torch.arange(40).flip(0)
    loss = info_nce(a, b, positives=positives, temperature=scale, impl="native")
    both = torch.autograd.grad(loss, (a, b, scale))
    for index, (x, y, t) in enumerate(((a, b.detach(), 0.2), (a.detach(), b, 0.2), (a.detach(), b.detach(), scale))):
        alone = info_nce(x, y, positives=positives, temperature=t, impl="native")
        (grad,) = torch.autograd.grad(alone, (x, y, t)[index])
        torch.testing.assert_close(grad, both[index], rtol=1e-12, atol=1e-15)


def test_strides():
    a, b = numbers(8, 120).T, numbers(130, 16)[::1, ::2]
    dense = a.contiguous(), b.contiguous()
    for door in DOORS:
        strided = differentiate(door, a, b[:120], 0.3, impl="native")
        for x, y in zip(strided, differentiate(door, dense[0], dense[1][:120], 0.3, impl="native"), strict=True):
            assert torch.equal(x, y)
    row = numbers(1, 6).expand(4, 6)
    assert nt_xent(row, impl="native").item() == pytest.approx(math.log(3))


def test_raw_ops_check_their_arguments():
    z = numbers(4, 3)

    def forward(a, b=None, **pairs):
        return native.forward(a, b, 0.5, True, Pairs(**pairs), Form())

    short = torch.zeros(3, dtype=torch.int64)
    for arguments, pairs, message in (
        ((z[0],), {}, "anchors must be|not enough values|too many|out of range"),
        ((z, z[:, :2]), {}, "candidates must be"),
        ((z, z.float()), {}, "dtype of anchors"),
        ((z,), {"groups": short}, r"groups must be int64 \[4\]"),
        ((z,), {"groups": torch.zeros(4)}, r"groups must be int64 \[4\]"),
        ((z, numbers(5, 3)), {"groups": torch.zeros(4, dtype=torch.int64)}, "need candidate_groups|candidate_groups"),
        ((z,), {"self_index": short}, r"self_index must be int64 \[4\]"),
        ((z,), {"self_index": torch.arange(4), "self_offset": 0}, "self_offset or self_index, not both"),
        ((z,), {"topk": -1}, "topk and spread must be at least 0"),
        ((z,), {"positive_index": short}, r"positive_index must be int64 \[4\]"),
        ((z,), {"row_threshold": numbers(3)}, "row_threshold must be"),
        ((z,), {"clusters": short, "candidate_clusters": short}, "clusters must be"),
        ((z,), {"clusters": short.expand(2, 3), "candidate_clusters": short}, "must have the same levels"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            forward(*arguments, **pairs)
    # An index that is none is no positive, and no row itself.
    assert forward(z, self_index=torch.tensor([9, -7, 2**40, -1]), positive_offset=0)[1].tolist() == [1, 1, 1, 1]
    _, count, _ = forward(z, positive_index=torch.tensor([7, -5, 2, 2**40]))
    assert count.tolist() == [0, 0, 1, 0]
    statistics = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="statistics must"):
        native.backward(torch.ones(4).double(), statistics, z, None, 0.5, True, Pairs(), Form(), [True, False, False])


def test_topk_cancels_all_that_tie():
    """Columns 3, 5 and 9 are one row: at place 1, 2 and 3 of the similarity to the first anchors."""
    a, b = numbers(50, 30, seed=1, dtype=torch.float32), numbers(50, 30, seed=2, dtype=torch.float32)
    b[[3, 5, 9]] = a[0] + a[1]
    for normalize in (True, False):
        for k, left in ((1, 46), (3, 46), (4, 45), (49, 0), (60, 0)):
            rule = FalseNegatives(topk=k)
            rows = info_nce(
                a, b, temperature=1e9, normalize=normalize, false_negatives=rule, reduction="none", impl="native"
            )
            # At such a temperature the loss is the logarithm of 1 + the number of negatives left.
            assert rows[:2].exp().tolist() == pytest.approx([left + 1] * 2, rel=1e-4)


def test_candidates_none_with_rules_that_are_not_symmetric():
    z = numbers(30, 4)
    pairs = Pairs(self_offset=0, positive_index=torch.arange(30).roll(1))
    for implementation in (reference, native):
        loss, count, statistics = implementation.forward(z, None, 0.3, True, pairs, Form())
        grad, none, scale = implementation.backward(
            torch.ones_like(loss), statistics, z, None, 0.3, True, pairs, Form(), [True, False, True]
        )
        if implementation is reference:
            expected = loss, count, statistics, grad, scale
    assert none.numel() == 0
    torch.testing.assert_close((loss, count, statistics[:2], grad, scale), expected)


@pytest.mark.slow
def test_more_than_two_to_the_31_pairs():
    """46,400 squared is beyond int32; 64 rows against float64."""
    rows, width = 46_400, 8
    a, b = numbers(rows, width, seed=1, dtype=torch.float32), numbers(rows, width, seed=2, dtype=torch.float32)
    a.requires_grad_()
    losses = info_nce(a, b, impl="native", reduction="none")
    some = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:64]
    (grad,) = torch.autograd.grad(losses.sum(), a)
    picked = a.detach()[some].double().requires_grad_()
    logits = F.normalize(picked) @ F.normalize(b.double()).T / 0.1
    expected = logits.logsumexp(1) - logits[torch.arange(64), some]
    (truth,) = torch.autograd.grad(expected.sum(), picked)
    torch.testing.assert_close(losses[some].double(), expected, rtol=1e-6, atol=1e-6)
    assert (grad[some].double() - truth).norm() <= 1e-6 * truth.norm()
    z = a.detach().requires_grad_()
    losses = nt_xent(z, impl="native", reduction="none", temperature=0.1)
    (grad,) = torch.autograd.grad(losses.sum(), z)
    logits = F.normalize(z.detach()[some].double()) @ F.normalize(z.detach().double()).T / 0.1
    logits[torch.arange(64), some] = -math.inf
    expected = logits.logsumexp(1) - logits[torch.arange(64), (some + rows // 2) % rows]
    torch.testing.assert_close(losses[some].double(), expected, rtol=1e-6, atol=1e-6)
    assert grad.isfinite().all()


MEMORY = """
import resource, torch
from clead_kernels import nt_xent
torch.set_num_threads(2)
z = torch.randn({rows}, 128, requires_grad=True)
nt_xent(z[:64], impl="native").backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nt_xent(z, impl="native").backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_peak_memory():
    """32,768 rows of 128: the matrix would be 4 GiB."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY.format(rows=32768)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 200
