"""Numerics of the contrastive Triton kernels, interpreted: ``test_contrastive_triton.py`` runs this in a child process.

Truth is float64 on whole matrices, with masks written down pair by pair. The shapes are ragged and take several tiles.
"""

from __future__ import annotations

import math
import os
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, clip_loss, explain, info_nce, nt_xent, sup_con
from clead_kernels._triton_rows import Config
from clead_kernels.contrastive import ops, reference, small, triton_search
from clead_kernels.contrastive.form import Form
from clead_kernels.contrastive.pairs import Pairs

ROWS, COLUMNS, WIDTH = 66, 75, 33
SELF = torch.eye(ROWS, dtype=torch.bool)
LABELS = torch.arange(ROWS) * 7 % 5
LABELS[3] = 2**33 + 1  # a label of its own, equal to another one in its lower 32 bits
CANDIDATE_LABELS = torch.arange(COLUMNS) * 3 % 6
INDEX = (torch.arange(ROWS) * 37 % COLUMNS).masked_fill(torch.arange(ROWS) % 11 == 0, -1)
NONE = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """These tests hold the kernels for few rows, or with FEW_ROWS=0 those for any number, to the same."""
    if os.environ.get("FEW_ROWS") == "0":
        monkeypatch.setattr(small, "MAX_ROWS", 0)


def views(count):
    image = torch.arange(ROWS) % (ROWS // count)
    return (image[:, None] == image) & ~SELF


# door -> (the call, positives, excluded pairs, whether a and b both take part)
DOORS = {
    "nt_xent": (lambda a, b, **k: nt_xent(a, **k), views(2), SELF),
    "nt_xent, 3 views": (lambda a, b, **k: nt_xent(a, num_views=3, **k), views(3), SELF),
    "sup_con": (lambda a, b, **k: sup_con(a, LABELS, **k), (LABELS[:, None] == LABELS) & ~SELF, SELF),
    "sup_con across sets": (
        lambda a, b, **k: sup_con(a, LABELS, candidates=b, candidate_labels=CANDIDATE_LABELS, **k),
        LABELS[:, None] == CANDIDATE_LABELS,
        NONE,
    ),
    "info_nce with a queue": (
        lambda a, b, **k: info_nce(a, b, **k),
        torch.arange(ROWS)[:, None] == torch.arange(COLUMNS),
        NONE,
    ),
    "info_nce by index": (
        lambda a, b, **k: info_nce(a, b, positives=INDEX, **k),
        INDEX[:, None] == torch.arange(COLUMNS),
        NONE,
    ),
}
ALONE = ("nt_xent", "nt_xent, 3 views", "sup_con")


def eager(a, b, positive, excluded, temperature, *, log_weight=0.0, normalize=True):
    a, b = (F.normalize(a), F.normalize(b)) if normalize else (a, b)
    logits = a @ b.T / temperature
    denominator = (logits + log_weight).masked_fill(excluded, -math.inf).logsumexp(1)
    count = positive.sum(1)
    return torch.where(count > 0, denominator - (logits * positive).sum(1) / count.clamp_min(1), 0.0)


def measure(rows_of, a, b, temperature, dtype):
    """Per-row losses, and the gradients of their weighted sum w.r.t. both sets and the temperature, in float64."""
    a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    rows = rows_of(a, b, t)
    weights = torch.linspace(0.5, 1.5, rows.shape[0], dtype=torch.float64).to(rows.dtype)
    grads = torch.autograd.grad(rows, (a, b, t), weights, allow_unused=True)
    return [rows.detach().double(), *(grad.double() for grad in grads if grad is not None)]


def error(got, truth):
    assert got.isfinite().all()
    return float((got - truth).norm() / truth.norm())


def data(dtype, width=WIDTH):
    generator = torch.Generator().manual_seed(width)
    a = torch.randn(ROWS, width, dtype=torch.float64, generator=generator)
    b = torch.randn(COLUMNS, width, dtype=torch.float64, generator=generator)
    b[:ROWS] += a  # positives at a cosine of about 0.7
    return a.to(dtype).double(), b.to(dtype).double()


SCALES = [(0.005, True), (0.05, False), (0.5, False), (10.0, True)]


DEFAULT = ("nt_xent", "sup_con across sets", "info_nce by index")


@pytest.mark.parametrize(
    ("door", "temperature", "learnable"),
    [
        pytest.param(door, t, flag, marks=() if flag == learnable and door in DEFAULT else pytest.mark.slow)
        for door in DOORS
        for t, learnable in SCALES
        for flag in (False, True)
    ],
)
def test_float32(door, temperature, learnable):
    call, positive, excluded = DOORS[door]
    a, b = data(torch.float32)
    truth = measure(
        lambda a, b, t: eager(a, a if door in ALONE else b, positive, excluded, t), a, b, temperature, torch.float64
    )
    got = measure(
        lambda a, b, t: call(a, b, temperature=t if learnable else temperature, reduction="none", impl="triton"),
        a, b, temperature, torch.float32,
    )  # fmt: skip
    bar = 1e-6 if temperature > 0.01 else 1e-5
    assert len(got) == len(truth) - (not learnable)
    for index, (x, y) in enumerate(zip(got[:-1] if learnable else got, truth, strict=False)):
        assert error(x, y) < bar, index
    if learnable:
        assert error(got[-1], truth[-1]) < 2e-5  # one number, in which the rows nearly cancel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("door", ["nt_xent", "sup_con across sets", "info_nce with a queue"])
def test_half_inputs_beat_eager_in_the_same_dtype(door, dtype):
    call, positive, excluded = DOORS[door]
    a, b = data(dtype)

    def plain(a, b, t):
        return eager(a, a if door in ALONE else b, positive, excluded, t)

    truth, rival = measure(plain, a, b, 0.1, torch.float64), measure(plain, a, b, 0.1, dtype)
    got = measure(lambda a, b, t: call(a, b, temperature=t, reduction="none", impl="triton"), a, b, 0.1, dtype)
    assert error(got[0], truth[0]) < 1e-6
    for x, y, z in zip(got[1:-1], truth[1:-1], rival[1:-1], strict=True):
        assert error(x, y) < min(torch.finfo(dtype).eps, error(z, y))
    assert error(got[-1], truth[-1]) < 1e-6


RULES = {
    "a number": {"threshold": 0.15},
    "0-d tensor": {"threshold": torch.tensor(0.15, dtype=torch.float64)},
    "one per row": {"threshold": torch.linspace(-0.3, 0.5, ROWS)},
    "clusters": {"clusters": True},
    "either": {"threshold": 0.3, "clusters": True, "combine": "or"},
    "both": {"threshold": torch.linspace(-0.3, 0.5, ROWS), "clusters": True, "combine": "and"},
}


def some(cases):
    """Every seventh case by default, which meets every value of every parameter; the rest is slow."""
    return [case if i % 7 == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


@pytest.mark.parametrize(
    ("door", "treatment", "rule", "normalize"),
    some(product(["nt_xent", "info_nce by index"], ["eliminate", "weight", "attract"], RULES, [True, False])),
)
def test_false_negatives(door, treatment, rule, normalize):
    call, positive, excluded = DOORS[door]
    a, b = data(torch.float32)
    temperature = 0.1 if normalize else 2.0
    other = a if door in ALONE else b
    given = dict(RULES[rule])
    cosines = F.normalize(a) @ F.normalize(other).T
    clusters = torch.arange(len(a)) % 6 - 1
    other_clusters = clusters if door in ALONE else torch.arange(len(other)) % 7 - 1
    found = []
    if "threshold" in given:
        threshold = torch.as_tensor(given["threshold"]).double().reshape(-1, 1)
        assert (cosines - threshold).abs().min() > 1e-6  # far enough that rounding does not decide
        found.append(cosines > threshold)
    if given.pop("clusters", False):
        found.append((clusters[:, None] == other_clusters) & (clusters >= 0)[:, None])
        given["labels"] = (clusters, other_clusters)
    either = given.get("combine", "or") == "or"
    false = (torch.stack(found).any(0) if either else torch.stack(found).all(0)) & ~positive & ~excluded
    assert false.sum() > 50
    log_weight = torch.zeros_like(cosines)
    if treatment == "eliminate":
        excluded = excluded | false
    elif treatment == "weight":
        given["weight"] = 0.3
        log_weight[false] = math.log(0.3)
    else:
        positive = positive | false
    rule = FalseNegatives(**given, treatment=treatment)

    def plain(a, b, t):
        return eager(
            a, a if door in ALONE else b, positive, excluded, t, log_weight=log_weight, normalize=normalize
        )  # fmt: skip

    def ours(a, b, t):
        return call(a, b, temperature=t, false_negatives=rule, normalize=normalize, reduction="none", impl="triton")

    truth, got = (measure(f, a, b, temperature, d) for f, d in ((plain, torch.float64), (ours, torch.float32)))
    for index, (x, y) in enumerate(zip(got, truth, strict=True)):
        assert error(x, y) < 2e-6, index


@pytest.mark.parametrize(
    "width", [1, 16, 128, 129, *(pytest.param(width, marks=pytest.mark.slow) for width in (127, 300, 512))]
)
def test_widths(width):
    a, b = data(torch.float32, width)
    other = b[:ROWS]
    truth = measure(lambda a, b, t: eager(a, b, SELF, NONE[:, :ROWS], t), a, other, 0.2, torch.float64)
    got = measure(
        lambda a, b, t: info_nce(a, b, temperature=t, reduction="none", impl="triton"), a, other, 0.2, torch.float32
    )
    for x, y in zip(got, truth, strict=True):
        assert float((x - y).norm()) < (1e-6 * float(y.norm()) if width > 1 else 1e-3)  # of one dimension, 0 remains


def test_the_statistics_begin_with_those_of_the_reference():
    a, _ = data(torch.float32)
    pairs = Pairs(self_offset=0, groups=LABELS)
    ours = ops.forward_op(a.float(), None, None, 0.1, True, "triton", *pairs, *Form())
    theirs = reference.forward(a, None, 0.1, True, pairs, Form())
    assert ours[1].dtype == torch.int64
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2][:2].double(), theirs[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("door", ["nt_xent", "info_nce by index"])
def test_bitwise_equal_twice(door):
    call, _, _ = DOORS[door]
    a, b = data(torch.bfloat16)
    first, second = (
        measure(lambda a, b, t: call(a, b, temperature=t, reduction="none", impl="triton"), a, b, 0.1, torch.bfloat16)
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_clip_is_the_mean_of_both_directions():
    a, b = data(torch.float32)
    b = b[:ROWS]

    def plain(a, b, t):
        return (eager(a, b, SELF, ~SELF & SELF, t) + eager(b, a, SELF, ~SELF & SELF, t)) / 2

    truth = measure(plain, a, b, 0.07, torch.float64)
    got = measure(
        lambda a, b, t: clip_loss(a, b, temperature=t, reduction="none", impl="triton"), a, b, 0.07, torch.float32
    )
    for x, y in zip(got, truth, strict=True):
        assert error(x, y) < 1e-6


def test_positives_by_index_within_one_set():
    """No front door asks for it, the op allows it: positives that are not positives of each other."""
    a = data(torch.float32)[0].float().requires_grad_()
    index = torch.arange(ROWS) * 3 % ROWS
    pairs = Pairs(self_offset=0, positive_index=index)
    results = []
    for impl, x in (("reference", a.detach().double().requires_grad_()), ("triton", a)):
        loss = ops.forward_op(x, None, None, 0.1, True, impl, *pairs, *Form())[0]
        results.append((loss.detach().double(), torch.autograd.grad(loss.sum(), x)[0].double()))
    assert error(results[1][0], results[0][0]) < 1e-6
    assert error(results[1][1], results[0][1]) < 1e-6


def test_what_is_not_supported_is_refused_with_the_row_of_the_table():
    x = torch.ones(4, 8)
    with pytest.raises(NotImplementedError, match=r"cannot run nt_xent .* triton \(cpu; .*width up to"):
        nt_xent(x, debias=0.1, impl="triton")
    with pytest.raises(NotImplementedError, match="width=above 512"):
        nt_xent(torch.ones(4, 513), impl="triton")
    with pytest.raises(NotImplementedError, match="float64"):
        nt_xent(x.double(), impl="triton")


def test_the_interpreter_is_never_the_automatic_choice():
    assert not explain("nt_xent").startswith("nt_xent on cpu float32: triton")


def test_cuts_are_found_in_larger_tiles_for_many_rows(monkeypatch):
    """14 rows in tiles of 4: the 3 most similar negatives of each leave its denominator."""
    monkeypatch.setattr(triton_search, "processors", lambda device: 1)
    monkeypatch.setitem(triton_search.SEARCH, (16, "float32"), None)
    monkeypatch.setitem(triton_search.SEARCH_MANY, (16, "float32"), Config(4, 16, 16, 4, 1))
    x = torch.randn(14, 9, generator=torch.Generator().manual_seed(0))
    cosines, losses = F.cosine_similarity(x[:, None].double(), x.double(), dim=2), []
    for row in range(14):
        positive = (row + 7) % 14
        negatives = sorted(float(cosines[row, j]) for j in range(14) if j not in (row, positive))[:-3]
        pulled = 2 * float(cosines[row, positive])
        losses.append(math.log(math.exp(pulled) + sum(math.exp(2 * value) for value in negatives)) - pulled)
    got = nt_xent(x, false_negatives=FalseNegatives(topk=3), reduction="none", impl="triton")
    torch.testing.assert_close(got, torch.tensor(losses), rtol=1e-6, atol=1e-6)
