"""Every form of the loss in Triton, against float64 from the rounded inputs: on a CUDA device, or interpreted.

``test_contrastive_triton_forms.py`` runs this file without a device, in a process in which Triton interprets. Truth is
autograd through whole matrices of log-probabilities, with 1 - p_ij summed from all others pair by pair.
"""

from __future__ import annotations

import math
import os
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, info_nce, instance_margin, nt_xent, sup_con
from clead_kernels.contrastive import reference
from clead_kernels.contrastive.pairs import Pairs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device"),
]
pytest.importorskip("triton")

DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
ROWS, COLUMNS, WIDTH = 36, 70, 33
NEVER = -1e4  # of a logit, whose exponential is then 0


def vector(values):
    return values.to(DEVICE)


LABELS, OTHERS = vector(torch.arange(ROWS) * 7 % 5), vector(torch.arange(COLUMNS) * 3 % 6)
INDEX = vector((torch.arange(ROWS) * 37 % COLUMNS).masked_fill(torch.arange(ROWS) % 11 == 0, -1))
SELF = vector((torch.arange(ROWS) * 5 % COLUMNS).masked_fill(torch.arange(ROWS) % 7 == 0, -1))
ROW, COLUMN = vector(torch.arange(ROWS)), vector(torch.arange(COLUMNS))
BY_INDEX = SELF[:, None] == COLUMN
# door -> (the call, positives, left-out pairs, whether the candidates are a set of their own)
DOORS = {
    "nt_xent": (
        lambda a, b, **k: nt_xent(a, num_views=3, **k),
        (ROW[:, None] % (ROWS // 3) == ROW % (ROWS // 3)) & (ROW[:, None] != ROW),
        ROW[:, None] == ROW,
        False,
    ),
    "sup_con": (
        lambda a, b, **k: sup_con(a, LABELS, candidates=b, candidate_labels=OTHERS, self_index=SELF, **k),
        (LABELS[:, None] == OTHERS) & ~BY_INDEX,
        BY_INDEX,
        True,
    ),
    "info_nce": (
        lambda a, b, **k: info_nce(a, b, positives=INDEX, self_index=SELF, **k),
        (INDEX[:, None] == COLUMN) & ~BY_INDEX,
        BY_INDEX,
        True,
    ),
}
FORMS = {
    "sum": {"positives_reduction": "sum"},
    "inside": {"positives_reduction": "inside"},
    "own": {"denominator": "own_positive"},
    "own, inside": {"denominator": "own_positive", "positives_reduction": "inside"},
    "decoupled": {"denominator": "negatives"},
    "decoupled, inside": {"denominator": "negatives", "positives_reduction": "inside"},
    "spread": {"spread": 0.7},
}
RULES = ["none", "any level, weight", "each level", "top, attract", "top or cosine, weight", "top and cosine"]


def data(dtype, seed=0, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, width, generator=generator, dtype=torch.float64) for count in (ROWS, COLUMNS))
    b[:ROWS] += a
    return vector(a.to(dtype).double()), vector(b.to(dtype).double())


def oracle(
    a, b, positive, log_weight, temperature, *, normalize, positives_reduction="mean", denominator="all", spread=0
):
    """Loss of every row; ``log_weight`` [M, N] of a negative, NEVER where the pair does not count."""
    if normalize:
        a, b = F.normalize(a), F.normalize(b)
    s = a @ b.T / temperature
    weighted = torch.where(positive | (log_weight == NEVER), NEVER, s + log_weight)
    of_positives = torch.where(positive, s, NEVER)
    count, over_negatives = positive.sum(1), weighted.logsumexp(1)
    everything = torch.logaddexp(over_negatives, of_positives.logsumexp(1))
    by = {
        "all": everything[:, None],
        "own_positive": torch.logaddexp(over_negatives[:, None], s),
        "negatives": over_negatives[:, None],
    }
    log_probability = s - by[denominator]
    valid = (count > 0) & ((over_negatives > NEVER / 2) if denominator == "negatives" else True)
    if positives_reduction == "inside":
        loss = count.clamp_min(1).log() - torch.where(positive, log_probability, NEVER).logsumexp(1)
    else:
        loss = -torch.where(positive, log_probability, 0.0).sum(1)
        loss = loss if positives_reduction == "sum" else loss / count.clamp_min(1)
    if spread:
        terms = torch.where(positive, s, weighted)
        itself = torch.eye(terms.shape[1], dtype=torch.bool, device=DEVICE)
        others = terms[:, None, :].masked_fill(itself, NEVER).logsumexp(2)
        loss = loss + spread * torch.where(weighted > NEVER / 2, F.softplus(weighted - others, threshold=60), 0.0).sum(
            1
        )
    return torch.where(valid, loss, 0.0)


def with_rule(rule, cosine, positive, left_out):
    """(the rule or None, positives, log-weights), or None where rounding could decide a comparison."""
    log_weight = left_out * NEVER
    if rule == "none":
        return None, positive, log_weight
    given, found = {}, []
    negative = ~positive & ~left_out
    if "level" in rule:
        rows, columns = (torch.stack([x % 5 - 1, x % 2, x % 10]) for x in (ROW, COLUMN[: cosine.shape[1]]))
        given["labels"] = rows if cosine.shape[1] == ROWS else (rows, columns)
        given["levels"] = rule.split()[0].rstrip(",")
        same = (rows[:, :, None] == columns[:, None, :]) & (rows >= 0)[:, :, None]
        found.append(same.any(0) if given["levels"] == "any" else same.all(0))
    if "top" in rule:
        given["topk"] = 9
        eligible = cosine.masked_fill(~negative, -2.0).sort(1, descending=True).values
        if (eligible[:, 8] - eligible[:, 9]).min() < 1e-6:
            return None
        found.append(cosine >= eligible[:, 8:9])
    if "cosine" in rule:
        cut = torch.linspace(0.05, 0.4, ROWS, device=DEVICE, dtype=torch.float64)[:, None]
        given["threshold"] = cut[:, 0].float()
        if (cosine - cut).abs().min() < 1e-6:
            return None
        found.append(cosine > cut)
    given["combine"] = "and" if " and " in rule else "or"
    false = negative & (torch.stack(found).all(0) if " and " in rule else torch.stack(found).any(0))
    assert false.sum() > 50
    if "attract" in rule:
        positive, given["treatment"] = positive | false, "attract"
    elif "weight" in rule:
        given["treatment"], given["weight"] = "weight", 0.3
        log_weight = log_weight + false * math.log(0.3)
    else:
        log_weight = torch.where(false, NEVER, log_weight)
    return FalseNegatives(**given), positive, log_weight


def measure(rows_of, a, b, temperature, dtype):
    """Per-row losses, and the gradients of their weighted sum w.r.t. what takes part, in float64."""
    a, b = (x.to(dtype, copy=True).requires_grad_() for x in (a, b))
    t = torch.tensor(temperature, dtype=torch.float64, device=DEVICE, requires_grad=True)
    rows = rows_of(a, b, t)
    weights = torch.linspace(0.5, 1.5, rows.shape[0], dtype=torch.float64, device=DEVICE).to(rows.dtype)
    grads = torch.autograd.grad(rows, (a, b, t), weights, allow_unused=True)
    return [rows.detach().double(), *(grad.double() for grad in grads if grad is not None)]


def error(got, truth):
    assert got.isfinite().all()
    return float((got - truth).norm() / truth.norm())


def compare(door, form, rule, dtype, temperature, learnable=True, normalize=True, seed=0):
    call, positive, left_out, both = DOORS[door]
    for attempt in range(40):
        a, b = data(dtype, 1000 * attempt + seed)
        cosine = F.normalize(a) @ F.normalize(b if both else a).T
        decided = with_rule(rule, cosine, positive, left_out)
        if decided is not None:
            break
    given, positive, log_weight = decided
    options = {"normalize": normalize, **FORMS[form]}
    truth = measure(
        lambda a, b, t: oracle(a, b if both else a, positive, log_weight, t, **options),
        a,
        b,
        temperature,
        torch.float64,
    )
    got = measure(
        lambda a, b, t: call(
            a,
            b,
            temperature=t if learnable else temperature,
            false_negatives=given,
            reduction="none",
            impl="triton",
            **options,
        ),
        a,
        b,
        temperature,
        dtype,
    )
    assert len(got) == len(truth) - (not learnable)
    bar = 4e-6 if temperature >= 0.05 else 2e-5
    assert error(got[0], truth[0]) < bar
    for x, y in zip(got[1 : 3 if both else 2], truth[1:], strict=False):
        assert error(x, y) < max(bar, 8 * torch.finfo(dtype).eps / 2)
    if learnable:
        assert error(got[-1], truth[-1]) < 5 * bar  # one number, in which the rows nearly cancel


def some(cases, every):
    return [case if i % every == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


@pytest.mark.parametrize(("door", "form", "rule"), some(product(DOORS, FORMS, RULES), 19))
def test_forms_with_every_rule(door, form, rule):
    compare(door, form, rule, torch.float32, 0.1)


@pytest.mark.parametrize(
    ("form", "door", "temperature", "learnable"),
    some(product(FORMS, DOORS, [0.01, 0.04, 5.0], [False, True]), 31),
)
def test_temperatures(form, door, temperature, learnable):
    compare(door, form, "none", torch.float32, temperature, learnable)


@pytest.mark.parametrize(("form", "door"), some(product(FORMS, ["nt_xent", "sup_con"]), 9))
def test_rows_that_are_not_normalised(form, door):
    compare(door, form, "top or cosine, weight", torch.float32, 2.0, normalize=False)


@pytest.mark.parametrize(
    ("form", "door", "dtype"), some(product(FORMS, ["nt_xent", "sup_con"], [torch.bfloat16, torch.float16]), 13)
)
def test_half_precision(form, door, dtype):
    for seed in range(1 if INTERPRETED else 5):
        compare(door, form, "none", dtype, 0.1, seed=seed)


@pytest.mark.parametrize("form", ["inside", "own, inside", "decoupled, inside", "spread"])
def test_positives_far_below_the_negatives(form):
    """e of a positive over that of the largest negative leaves the range of float32, gradients do not vanish."""
    x = torch.zeros(8, 4, dtype=torch.float64)
    x[:, 0] = torch.linspace(1.0, 2.0, 8)
    x[4:, 0] *= -1.0
    x[:, 1] = torch.linspace(-0.3, 0.4, 8).square()
    labels = torch.arange(8) % 2
    positive = (labels[:, None] == labels) & ~torch.eye(8, dtype=torch.bool)
    positive[2] = False  # row 2 of class 2: no positive
    positive[:, 2] = False
    labels[2] = 2
    log_weight = torch.eye(8, dtype=torch.float64) * NEVER
    x, labels, positive, log_weight = (vector(value) for value in (x, labels, positive, log_weight))
    options = {"normalize": False, **FORMS[form]}
    truth = measure(lambda a, b, t: oracle(a, a, positive, log_weight, t, **options), x, x, 0.02, torch.float64)
    got = measure(
        lambda a, b, t: sup_con(a, labels, temperature=t, reduction="none", impl="triton", **options),
        x, x, 0.02, torch.float32,
    )  # fmt: skip
    for found, expected in zip(got, truth, strict=True):
        assert error(found, expected) < 2e-5


@pytest.mark.parametrize("lead", [1.0, 30.0])
def test_spread_where_one_negative_has_nearly_everything(lead):
    a = torch.tensor([[1.0, 0.0, 0.0], [0.2, 1.0, 0.1], [0.3, -0.5, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.1, 0.9, 0.3], [0.4, 0.1, -0.2], [-0.3, 0.2, 0.8], [0.9, 0.3, 0.2]], dtype=torch.float64)
    b[3] *= lead
    a, b = (vector(x.float().double()) for x in (a, b))
    positive = vector(torch.eye(3, 4, dtype=torch.bool))
    truth = measure(
        lambda a, b, t: oracle(a, b, positive, positive * 0.0, t, normalize=False, spread=0.5), a, b, 1.0, torch.float64
    )
    got = measure(
        lambda a, b, t: info_nce(a, b, temperature=t, spread=0.5, normalize=False, reduction="none", impl="triton"),
        a, b, 1.0, torch.float32,
    )  # fmt: skip
    assert error(got[0], truth[0]) < 1e-6
    for found, expected in zip(got[1:], truth[1:], strict=True):
        assert error(found, expected) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_positives_or_without_negatives(form):
    """Row 0 has no positive, row 1 no negative; then all negatives are eliminated, and there are no candidates."""
    a, b = (x.float()[:6].requires_grad_() for x in data(torch.float32))
    labels, others = vector(torch.tensor([9, 1, 1, 1, 1, 1])), vector(torch.tensor([1, 1, 1, 1, 1, 1]))
    options = {"reduction": "none", "temperature": 0.3, "impl": "triton", **FORMS[form]}
    rows = sup_con(a, labels, candidates=b, candidate_labels=others, **options)
    expected = sup_con(
        a.double(), labels, candidates=b.double(), candidate_labels=others, **options | {"impl": "reference"}
    )
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)
    for x, y in zip(
        *(torch.autograd.grad(loss.sum(), (a, b), retain_graph=True) for loss in (rows, expected)), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    all_false = FalseNegatives(threshold=-1.0)
    rows = info_nce(a, b, false_negatives=all_false, **options)
    assert rows.tolist() == [0.0] * 6
    assert all((grad == 0).all() for grad in torch.autograd.grad(rows.sum(), (a, b)))
    rows = sup_con(a, labels, candidates=b[:0], candidate_labels=others[:0], **options)
    assert rows.tolist() == [0.0] * 6
    assert (torch.autograd.grad(rows.sum(), a)[0] == 0).all()


@pytest.mark.parametrize(
    "k", [1, 15, pytest.param(16, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)]
)
def test_the_topk_rule_cancels_what_the_reference_cancels(k):
    """Also where rows tie, once they are rows of powers of two, whose cosines are exact."""
    a, b = (x.float() for x in data(torch.float32))
    tied = torch.zeros(COLUMNS, 4, device=DEVICE)
    tied[COLUMN, COLUMN % 3] = 1.0
    for anchors, candidates in ((a, b), (tied[:ROWS] + 0.0, tied)):
        rule = FalseNegatives(topk=k)
        pairs = Pairs(positive_index=INDEX).with_false_negatives(rule, (ROWS, COLUMNS), anchors.device)
        _, kept, _ = reference.masks(anchors.double(), candidates.double(), pairs)
        # The gradient by a candidate of what one row loses is 0 only where the pair does not count.
        candidates = candidates.clone().requires_grad_()
        loss = info_nce(
            anchors, candidates, positives=INDEX, false_negatives=rule, temperature=0.5, reduction="none",
            normalize=False, denominator="negatives", impl="triton",
        )  # fmt: skip
        for row in range(1, ROWS, 21 if INTERPRETED else 1):
            (grad,) = torch.autograd.grad(loss[row], candidates, retain_graph=True)
            counts = kept[row] & (INDEX[row] >= 0)
            if counts.any():
                counts[INDEX[row]] = True
            assert torch.equal((grad != 0).any(1), counts)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("normalize", [True, False])
def test_instance_margin(normalize, dtype):
    a, b = data(dtype)
    b[41] = b[40] = 2 * a[1]  # the first of equal ones is the rival

    def plain(a, b, t):
        if normalize:
            a, b = F.normalize(a), F.normalize(b)
        s = a @ b.T / t
        rows = []
        for i, positive in enumerate(INDEX.tolist()):
            others = [j for j in range(COLUMNS) if j != positive]
            rival = max(others, key=s[i].tolist().__getitem__)  # of equal ones the first
            rows.append(s[i, rival] - s[i, positive] if positive >= 0 else 0.0 * s[i, 0])
        return torch.stack(rows)

    truth = measure(plain, a, b, 0.3, torch.float64)
    got = measure(
        lambda a, b, t: instance_margin(a, b, positives=INDEX, temperature=t, normalize=normalize, impl="triton"),
        a, b, 0.3, dtype,
    )  # fmt: skip
    bar = 8 * torch.finfo(dtype).eps / 2 + 1e-6
    assert error(got[0], truth[0]) < 1e-6
    for found, expected in zip(got[1:], truth[1:], strict=True):
        assert error(found, expected) < bar


def test_what_the_search_cannot_do_is_refused():
    x = torch.ones(4, 8, device=DEVICE)
    with pytest.raises(NotImplementedError, match="topk=above 255"):
        nt_xent(x, false_negatives=FalseNegatives(topk=256), impl="triton")
    with pytest.raises(NotImplementedError, match="width=above 512"):
        instance_margin(torch.ones(4, 513, device=DEVICE), torch.ones(4, 513, device=DEVICE), impl="triton")


@pytest.mark.parametrize("form", ["own, inside", "spread"])
def test_bitwise_equal_twice(form):
    call, *_ = DOORS["nt_xent"]
    a, b = data(torch.bfloat16)
    first, second = (
        measure(
            lambda a, b, t: call(a, b, temperature=t, reduction="none", impl="triton", **FORMS[form]),
            a, b, 0.1, torch.bfloat16,
        )
        for _ in range(2)
    )  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="for a device: the tiles of many rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["inside", "own, inside", "decoupled", "spread"])
def test_many_rows(form, dtype):
    x = torch.randn(9001, WIDTH, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    labels = torch.arange(9001, device=DEVICE) % 100

    def call(impl, dtype):
        rows = x.to(dtype, copy=True).requires_grad_()
        loss = sup_con(rows, labels, temperature=0.1, reduction="none", impl=impl, **FORMS[form])
        return loss.detach().double(), torch.autograd.grad(loss.sum(), rows)[0].double()

    for found, expected, bar in zip(
        call("triton", dtype), call("reference", torch.float64), (4e-6, 4e-6 + 4 * torch.finfo(dtype).eps), strict=True
    ):
        assert error(found, expected) < bar
