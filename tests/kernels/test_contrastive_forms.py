"""The forms of the contrastive losses against loops over pairs, written from the papers' equations, in float64.

The loops are scalar arithmetic on tensors of one element, so that autograd gives the gradients of what is written.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from clead_kernels import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con

pytestmark = pytest.mark.kernels

LABELS = torch.tensor([4, 4, 7, 4, 7, -2])
CANDIDATE_LABELS = torch.tensor([7, 4, 4, 9, 9, 4, 7, 7])
POSITIVES = torch.tensor([3, -1, 0, 7, 3, 5])
SELF = torch.tensor([0, 1, -1, 2, 6, 7])


def similarity(x, y, temperature, metric, normalize):
    if normalize:
        x, y = x / x.norm(), y / y.norm()
    return ((x * y).sum() if metric == "cosine" else -((x - y) ** 2).sum()) / temperature


def row_loss(s, positives, kappa, temperature, *, reduction, denominator, spread, debias, beta):
    """Loss of a row with logits s; kappa: {negative: weight}. Equations as in the docstrings of the front doors."""
    negatives = [j for j in kappa if kappa[j] > 0]
    if not positives or (denominator == "negatives" and not negatives):
        return 0.0 * s.sum()
    mass, number = sum((kappa[j] * s[j].exp() for j in negatives), 0.0 * s[0]), sum(kappa[j] for j in negatives)
    if negatives and beta:
        hardness = {j: kappa[j] * (beta * s[j]).exp() for j in negatives}
        mass = number * sum(hardness[j] * s[j].exp() for j in negatives) / sum(hardness.values())
    if negatives and debias:
        mean = sum(s[p].exp() for p in positives) / len(positives)
        debiased = (mass - number * debias * mean) / (1 - debias)
        mass = torch.maximum(debiased, number * (-1 / temperature).exp())
    everything = mass + sum(s[p].exp() for p in positives)
    denominators = {
        p: {"all": everything, "own_positive": mass + s[p].exp(), "negatives": mass}[denominator] for p in positives
    }
    probabilities = [s[p].exp() / denominators[p] for p in positives]
    if reduction == "inside":
        loss = -(sum(probabilities) / len(positives)).log()
    else:
        loss = -sum(p.log() for p in probabilities) / (len(positives) if reduction == "mean" else 1)
    if spread:
        loss = loss - spread * sum((1 - kappa[j] * s[j].exp() / everything).log() for j in negatives)
    return loss


def loop(
    anchors,
    candidates,
    positives_of,
    excluded_of,
    temperature,
    *,
    cancelled=None,
    normalize=True,
    metric="cosine",
    **form,
):
    form = {"reduction": "mean", "denominator": "all", "spread": 0.0, "debias": 0.0, "beta": 0.0, **form}
    rows = []
    for i, anchor in enumerate(anchors):
        s = torch.stack([similarity(anchor, x, temperature, metric, normalize) for x in candidates])
        columns = set(range(len(candidates))) - excluded_of(i)
        positives = sorted(positives_of(i) & columns)
        kappa = {j: cancelled(i, j) if cancelled else 1.0 for j in sorted(columns - set(positives))}
        rows.append(row_loss(s, positives, kappa, temperature, **form))
    return torch.stack(rows)


def same(labels, other, row):
    return {j for j in range(len(other)) if other[j] == labels[row]}


# Each door as (inputs -> loss) and as its candidates and the sets of its definition. M = 6 rows.
DOORS = {
    "info_nce": (
        lambda a, b, **k: info_nce(a, b, positives=POSITIVES, self_index=SELF, **k),
        lambda a, b: (b, lambda i: {POSITIVES[i].item()}, lambda i: {SELF[i].item()}),
    ),
    "nt_xent, 2 views": (
        lambda a, b, **k: nt_xent(a, **k),
        lambda a, b: (a, lambda i: {(i + 3) % 6}, lambda i: {i}),
    ),
    "nt_xent, 3 views": (
        lambda a, b, **k: nt_xent(a, num_views=3, **k),
        lambda a, b: (a, lambda i: {(i + 2) % 6, (i + 4) % 6}, lambda i: {i}),
    ),
    "sup_con": (
        lambda a, b, **k: sup_con(a, LABELS, **k),
        lambda a, b: (a, lambda i: same(LABELS, LABELS, i), lambda i: {i}),
    ),
    "sup_con across sets": (
        lambda a, b, **k: sup_con(a, LABELS, candidates=b, candidate_labels=CANDIDATE_LABELS, self_index=SELF, **k),
        lambda a, b: (b, lambda i: same(LABELS, CANDIDATE_LABELS, i), lambda i: {SELF[i].item()}),
    ),
}
FORMS = {
    "sum": {"reduction": "sum"},
    "inside": {"reduction": "inside"},
    "own": {"denominator": "own_positive"},
    "own, sum": {"denominator": "own_positive", "reduction": "sum"},
    "own, inside": {"denominator": "own_positive", "reduction": "inside"},
    "decoupled": {"denominator": "negatives"},
    "decoupled, inside": {"denominator": "negatives", "reduction": "inside"},
    "spread": {"spread": 0.7},
    "debiased": {"debias": 0.1},
    "debiased to the floor": {"debias": 0.7},
    "hard": {"beta": 0.8},
    "hard, debiased": {"beta": 1.0, "debias": 0.15},
    "hard, debiased, own": {"beta": 0.5, "debias": 0.05, "denominator": "own_positive"},
    "debiased, decoupled, inside": {"debias": 0.2, "denominator": "negatives", "reduction": "inside"},
    "euclidean": {"metric": "euclidean"},
    "euclidean, own, dots": {"metric": "euclidean", "denominator": "own_positive", "normalize": False},
    "euclidean, spread": {"metric": "euclidean", "spread": 0.3},
    "hard, dots": {"beta": 0.3, "normalize": False},
}
IMPLS = ("auto", "reference")  # auto is native for the forms it has
NAMES = {"reduction": "positives_reduction", "beta": "hard_negative_beta"}


def options_of(form):
    return {NAMES.get(name, name): value for name, value in form.items()}


def inputs_of(randn, seed=1):
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    return randn(6, 3, seed=seed, grad=True), randn(8, 3, seed=seed + 1, grad=True), temperature


def check(ours, truth, inputs):
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    upstream = torch.linspace(-1.0, 2.0, len(truth), dtype=torch.float64)
    got, expected = (torch.autograd.grad(x, inputs, upstream, allow_unused=True) for x in (ours, truth))
    for x, y in zip(got, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("door", "form", "impl"), list(product(DOORS, FORMS, IMPLS)))
def test_forms(randn, door, form, impl):
    a, b, temperature = inputs_of(randn)
    ours, sets = DOORS[door]
    rows = ours(a, b, temperature=temperature, reduction="none", impl=impl, **options_of(FORMS[form]))
    check(rows, loop(a, *sets(a, b), temperature, **FORMS[form]), (a, b, temperature))


@pytest.mark.parametrize("form", ["inside", "own", "decoupled", "spread", "debiased", "hard, debiased", "euclidean"])
@pytest.mark.parametrize("rule", ["eliminate", "weight", "everything"])
@pytest.mark.parametrize("impl", IMPLS)
def test_forms_with_false_negatives(randn, form, rule, impl):
    a, b, temperature = inputs_of(randn)
    cut = -1.0 if rule == "everything" else 0.1
    treatment = {"treatment": "weight", "weight": 0.3} if rule == "weight" else {}
    rows = sup_con(
        a,
        LABELS,
        temperature=temperature,
        impl=impl,
        reduction="none",
        false_negatives=FalseNegatives(threshold=cut, **treatment),
        **options_of(FORMS[form]),
    )

    def weight(i, j):
        is_false = similarity(a[i], a[j], 1.0, "cosine", True) > cut
        return treatment.get("weight", 0.0) if is_false else 1.0

    check(rows, loop(a, *DOORS["sup_con"][1](a, b), temperature, cancelled=weight, **FORMS[form]), (a, temperature))


@pytest.mark.parametrize(("form", "impl"), list(product(FORMS, IMPLS)))
def test_rows_without_positives_or_negatives(randn, form, impl):
    """Row 0 has two positives and no negative, the others have negatives only; then there are no candidates at all."""
    a, _, temperature = inputs_of(randn)
    b, labels, ones = randn(2, 3, seed=9, grad=True), torch.tensor([1, 5, 7, 8, 1, 4]), torch.ones(2, dtype=torch.int64)
    options = {"temperature": temperature, "reduction": "none", "impl": impl, **options_of(FORMS[form])}
    rows = sup_con(a, labels, candidates=b, candidate_labels=ones, **options)
    truth = loop(a, b, lambda i: same(labels, ones, i), lambda i: set(), temperature, **FORMS[form])
    check(rows, truth, (a, b, temperature))
    rows = sup_con(a, labels, candidates=b[:0], candidate_labels=ones[:0], **options)
    assert rows.tolist() == [0.0] * 6
    assert torch.autograd.grad(rows.sum(), a)[0].eq(0).all()


@pytest.mark.parametrize(("door", "impl"), list(product(DOORS, IMPLS)))
def test_constant_candidates(randn, door, impl):
    a, b, temperature = inputs_of(randn)
    ours, sets = DOORS[door]
    candidates, *rest = sets(a, b)
    truth = loop(a, candidates.detach(), *rest, temperature)
    check(
        ours(a, b, temperature=temperature, reduction="none", grad_candidates=False, impl=impl),
        truth,
        (a, b, temperature),
    )


def test_constant_candidates_of_clip_loss(randn):
    a, b, temperature = inputs_of(randn)
    b = b[:6]
    rows = clip_loss(a, b, temperature=temperature, reduction="none", grad_candidates=False)
    pairs = (lambda i: {i}, lambda i: set(), temperature)
    truth = (loop(a, b.detach(), *pairs) + loop(b, a.detach(), *pairs)) / 2
    check(rows, truth, (a, b, temperature))


def test_weights_multiply_rows_and_are_constants(randn):
    a, b, _ = inputs_of(randn)
    weights = torch.tensor([0.0, 2.0, -1.0, 0.5, 3.0, 1.0], requires_grad=True)
    for door in (info_nce, clip_loss):
        rows = door(a, b[:6], reduction="none")
        weighted = (rows * weights.detach()).sum()
        torch.testing.assert_close(door(a, b[:6], weights=weights), weighted / 6)
        torch.testing.assert_close(door(a, b[:6], weights=weights, reduction="sum"), weighted)
    loss = sup_con(a, LABELS, weights=weights, reduction="mean_valid")
    torch.testing.assert_close(loss, (sup_con(a, LABELS, reduction="none") * weights.detach()).sum() / 5)
    loss.backward()
    assert weights.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_one_positive_forms_agree_where_they_must(randn, form):
    """Two equations of one loss: with a single positive, how positives are reduced changes nothing."""
    z = randn(6, 4)
    options = options_of(FORMS[form])
    if "positives_reduction" not in options and "spread" not in options:
        losses = [nt_xent(z, positives_reduction=how, **options).item() for how in ("mean", "sum", "inside")]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-14)


def test_hand_numbers():
    eye = torch.eye(4, dtype=torch.float64)
    # Orthogonal rows: every logit is 0. Each row of sup_con has two positives and one negative.
    labels = torch.tensor([0, 0, 0, 1])
    first = {"reduction": "none", "temperature": 1.0}
    assert sup_con(eye, labels, positives_reduction="sum", **first)[0].item() == pytest.approx(2 * math.log(3))
    assert sup_con(eye, labels, positives_reduction="inside", **first)[0].item() == pytest.approx(math.log(3))
    assert sup_con(eye, labels, denominator="own_positive", **first)[0].item() == pytest.approx(math.log(2))
    assert sup_con(eye, labels, denominator="negatives", **first)[0].item() == 0
    # p = 1/3 for the positive and both negatives: log 3 - 2 log(2/3).
    assert nt_xent(eye, spread=1.0).item() == pytest.approx(math.log(3) - 2 * math.log(2 / 3))
    # N = (2 - 2 t) / (1 - t) = 2 whatever t, and equal negatives are equally hard.
    assert nt_xent(eye, debias=0.3).item() == pytest.approx(math.log(3))
    assert nt_xent(eye, hard_negative_beta=2.0).item() == pytest.approx(math.log(3))
    # Opposite negatives: the floor 2 e^(-1), above (2 e^(-1) - 2 t e) / (1 - t).
    a, b = torch.ones(1, 2).double(), torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-2.0, -2.0]]).double()
    assert info_nce(a, b, debias=0.1, temperature=1.0).item() == pytest.approx(math.log1p(2 * math.exp(-2)))
    # Squared distances: 0 to the positive, 4 to the negative.
    a, b = torch.zeros(1, 1).double(), torch.tensor([[0.0], [2.0]]).double()
    loss = info_nce(a, b, metric="euclidean", normalize=False, temperature=1.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-4)))


@pytest.mark.parametrize("impl", IMPLS)
def test_spread_of_a_dominant_negative_keeps_its_digits(impl):
    """Logits 0 of the positive, 30 and 0: 1 - p of the second is e^-30, and in float32 p itself is 1."""
    a = torch.tensor([[1.0, 0.0]], requires_grad=True)
    b = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    loss = info_nce(a, b, temperature=1 / 30, spread=1.0, impl=impl)
    rest = 2 * math.exp(-30)
    expected = math.log1p(rest) + 30 + math.log(1 + 1 / rest) - math.log1p(-math.exp(-30) / (1 + rest))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # By the logits 0: -1 + p - p T of the positive, p + p / (1 - p) - p T of the negative, where T is about e^30 / 2.
    (grad,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -30.0]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_spread_where_exponentials_leave_the_range(impl, scale):
    """Logits 0 of the positive, then `scale` and -`scale`; and the other way round, where the positive dominates."""
    a = torch.tensor([[1.0, 0.0]], requires_grad=True)
    b = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    loss = info_nce(a, b, temperature=1 / scale, spread=1.0, impl=impl)
    assert loss.item() == pytest.approx(2 * scale, rel=1e-6)
    # By the positive: -1 + p - p T with p T = 1.
    (grad,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -2 * scale]]), rtol=1e-5, atol=1e-5)
    loss = info_nce(a, b * scale, positives=torch.tensor([1]), normalize=False, spread=1.0, impl=impl)
    (grad,) = torch.autograd.grad(loss, a)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert grad.abs().max().item() <= 1e-9


@pytest.mark.parametrize("impl", IMPLS)
def test_spread_of_rows_without_a_positive_is_0(randn, impl):
    """Nothing bounds the exponentials of such rows."""
    a, b = randn(128, 2, dtype=torch.float32, grad=True), randn(129, 2, dtype=torch.float32)
    loss = info_nce(a, b, temperature=0.005, positives=torch.full((128,), -1), spread=1.0, impl=impl)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, a)[0].eq(0).all()


LEVELS = torch.tensor([[0, 0, 1, 1, 0, -1], [3, 4, 3, 4, 3, 3], [5, 5, 5, -1, 5, 5]])


@pytest.mark.parametrize("levels", ["any", "each"])
@pytest.mark.parametrize("treatment", ["eliminate", "attract"])
def test_labels_at_several_granularities(randn, levels, treatment):
    a, b, temperature = inputs_of(randn)

    def is_false(i, j):
        found = [LEVELS[level, i] >= 0 and LEVELS[level, i] == LEVELS[level, j] for level in range(3)]
        return any(found) if levels == "any" else all(found)

    rule = FalseNegatives(labels=LEVELS, levels=levels, treatment=treatment)
    rows = nt_xent(a, temperature=temperature, false_negatives=rule, reduction="none")
    if treatment == "eliminate":
        truth = loop(a, *DOORS["nt_xent, 2 views"][1](a, b), temperature, cancelled=lambda i, j: 1.0 - is_false(i, j))
    else:
        of_row = lambda i: {(i + 3) % 6} | {j for j in range(6) if is_false(i, j)}  # noqa: E731
        truth = loop(a, a, of_row, lambda i: {i}, temperature)
    check(rows, truth, (a, temperature))
    assert (rows - nt_xent(a, temperature=temperature, reduction="none")).abs().max() > 1e-3


def test_granularities_per_image_and_for_two_sets(randn):
    a, b, _ = inputs_of(randn)
    per_image = LEVELS[:, :3]
    rule = FalseNegatives(labels=per_image)
    repeated = FalseNegatives(labels=torch.cat([per_image, per_image], 1))
    assert nt_xent(a, false_negatives=rule) == nt_xent(a, false_negatives=repeated)
    # One granularity is the same as a vector, which native has.
    one = FalseNegatives(labels=(LEVELS[:1], torch.arange(8)[None] % 2))
    flat = FalseNegatives(labels=(LEVELS[0], torch.arange(8) % 2))
    assert info_nce(a, b, false_negatives=one) == info_nce(a, b, false_negatives=flat)


A, B = torch.ones(4, 3), torch.ones(6, 3)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nt_xent(A, positives_reduction="max"), ValueError, "positives_reduction must be one of .*, got 'max'"),
        (lambda: nt_xent(A, denominator="none"), ValueError, "denominator must be one of .*, got 'none'"),
        (lambda: nt_xent(A, metric="dot"), ValueError, "metric must be one of 'cosine', 'euclidean', got 'dot'"),
        (lambda: nt_xent(A, spread=-1.0), ValueError, r"spread must be in \[0, inf\), got -1.0"),
        (lambda: nt_xent(A, spread=math.nan), ValueError, r"spread must be in \[0, inf\), got nan"),
        (lambda: nt_xent(A, debias=1.0), ValueError, r"debias must be in \[0, 1\), got 1.0"),
        (lambda: nt_xent(A, hard_negative_beta="1"), TypeError, "hard_negative_beta must be a number, got str"),
        (lambda: nt_xent(A, spread=1.0, denominator="negatives"), ValueError, "spread .* got denominator=negatives"),
        (
            lambda: nt_xent(A, spread=1.0, positives_reduction="sum"),
            ValueError,
            "spread .* got positives_reduction=sum",
        ),
        (lambda: nt_xent(A, debias=0.1, normalize=False), ValueError, "debias needs normalised rows and cosines"),
        (lambda: nt_xent(A, debias=0.1, metric="euclidean"), ValueError, "debias needs .* metric='euclidean'"),
        (lambda: nt_xent(A, weights=[1.0]), TypeError, "weights must be a tensor, got list"),
        (lambda: nt_xent(A, weights=torch.ones(3)), ValueError, r"weights must be floating-point \[4\], got \[3\]"),
        (lambda: nt_xent(A, weights=torch.ones(4).int()), ValueError, r"weights must be .*, got \[4\] int32"),
        (lambda: nt_xent(A, weights=torch.ones(4, device="meta")), ValueError, "weights must be on cpu"),
        (lambda: info_nce(A, B, self_index=torch.tensor([0, 6, 0, 0])), ValueError, r"self_index .* found 6"),
        (lambda: sup_con(A, torch.zeros(4).int(), self_index=torch.arange(4)), ValueError, "self_index is for candida"),
        (
            lambda: nt_xent(A, impl="triton", debias=0.1),
            NotImplementedError,
            "debias=yes; nt_xent has .*triton .*debias no",
        ),
        (lambda: nt_xent(A, impl="triton", metric="euclidean"), NotImplementedError, "triton .*metric cosine"),
        (
            lambda: nt_xent(A, false_negatives=FalseNegatives(labels=torch.zeros(2, 3).int())),
            ValueError,
            r"every row of labels must have shape \[4\] or \[2\], got \[3\]",
        ),
        (
            lambda: nt_xent(A, false_negatives=FalseNegatives(labels=(torch.zeros(2, 4).int(), torch.zeros(4).int()))),
            ValueError,
            r"same granularities for anchors and candidates, got \[2, 4\] and \[4\]",
        ),
        (lambda: FalseNegatives(labels=LEVELS, levels="all"), ValueError, "levels must be one of 'any', 'each', got"),
    ],
)
def test_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
