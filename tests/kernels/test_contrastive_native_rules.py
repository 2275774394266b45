"""The pair rules of the native contrastive kernels against float64 formulas written here row by row.

Cuts lie where no cosine is near (contracts.md section 8); what happens at a cut has tests of its own.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, _native, info_nce, nt_xent, sup_con

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}"),
]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MARGIN = 32 * 2**-24


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whole(high, *shape, seed=0, low=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def levels_of(size, seed):
    """Three granularities of pseudo-labels, some of them unknown: neither contains another."""
    return torch.stack([whole(high, size, seed=seed + high, low=-1) for high in (size // 3 + 2, size // 6 + 2, 4)])


def quiet_cut(cosines, near):
    """A cosine near ``near`` to which no pair comes close."""
    values = cosines.flatten().sort().values
    ends = torch.tensor([near - 0.05, near + 0.05], dtype=values.dtype)
    values = torch.cat([ends[:1], values[(values - near).abs() < 0.05], ends[1:]])
    gaps = values.diff()
    assert gaps.max() > 2 * MARGIN
    return float(values[gaps.argmax()] + gaps.max() / 2)


def rule_of(name, cosines, pair, treatment):
    """A ``FalseNegatives`` for these cosines [M, N]; ``pair``: labels of anchors and candidates differ."""
    m, n = cosines.shape
    levels = levels_of(m, 10)
    levels = (levels, levels_of(n, 40)) if pair else levels
    first = (levels[0][2], levels[1][2]) if pair else levels[2]
    low, high = quiet_cut(cosines, 0.1), quiet_cut(cosines, 0.35)
    rows = torch.where(numbers(m, seed=7) > 0, low, high)
    options = {
        "threshold": {"threshold": low},
        "rows": {"threshold": rows},
        "topk": {"topk": 3},
        "labels": {"labels": first},
        "any": {"labels": levels},
        "each": {"labels": levels, "levels": "each"},
        "any, or": {"labels": levels, "threshold": rows, "topk": 2},
        "any, and": {"labels": levels, "threshold": low, "combine": "and"},
        "each, or": {"labels": levels, "levels": "each", "threshold": rows},
        "topk, and": {"topk": 4, "threshold": rows, "combine": "and"},
        "never": {"threshold": math.inf},
    }[name]
    return FalseNegatives(treatment=treatment, weight=0.3 if treatment == "weight" else 1.0, **options)


RULES = ("threshold", "rows", "topk", "labels", "any", "each", "any, or", "any, and", "each, or", "topk, and", "never")


def cancelled(cosines, negative, rule):
    """Of the pairs ``negative``, those that ``rule`` calls false negatives: bool [M, N]."""
    found = []
    if rule.threshold is not None:
        cut = rule.threshold
        found.append(cosines > (cut[:, None] if isinstance(cut, torch.Tensor) else cut))
    if rule.topk is not None:
        eligible = cosines.masked_fill(~negative, -math.inf)
        best = eligible.argsort(1, descending=True)[:, : rule.topk]
        found.append(torch.zeros_like(negative).scatter(1, best, True))
    if rule.labels is not None:
        rows, columns = rule.labels if isinstance(rule.labels, tuple) else (rule.labels, rule.labels)
        of_levels = list(zip(rows, columns, strict=True)) if rows.ndim == 2 else [(rows, columns)]
        same = torch.stack([equal(of_row, of_column) & (of_row >= 0)[:, None] for of_row, of_column in of_levels])
        found.append(same.all(0) if rule.levels == "each" else same.any(0))
    every = torch.stack(found)
    return negative & (every.all(0) if rule.combine == "and" else every.any(0))


def settled(cosines, negative):
    """Whether no two of a row's largest cosines are close."""
    best = cosines.masked_fill(~negative, -math.inf).sort(1, descending=True).values[:, 1:5]
    return bool((best.diff(dim=1).abs().nan_to_num(1.0) > MARGIN).all())


def log_sum(s, weight):
    """log of the sum of weight * e^s over each row, -inf where all weights are 0."""
    some = (weight > 0).any(1)
    logs = torch.where(weight > 0, s + weight.clamp_min(1e-300).log(), -math.inf)
    return torch.where(some, torch.where(some[:, None], logs, 0.0).logsumexp(1), -math.inf)


def row_losses(s, positive, weight, positives_reduction="mean", denominator="all", spread=0.0):
    """The losses of rows with logits s [M, N] and weights of the negatives, 0 for all other pairs."""
    valid, count, mass = positive.any(1), positive.sum(1).clamp_min(1), log_sum(s, weight)[:, None]
    safe = torch.where(valid[:, None], positive.double(), 1.0)  # rows without a positive are dropped below
    everything = torch.logaddexp(mass, log_sum(s, safe)[:, None])
    below = {"all": everything, "own_positive": torch.logaddexp(mass, s), "negatives": mass}[denominator]
    if denominator == "negatives":
        valid, below = valid & (mass[:, 0] > -math.inf), torch.where(mass > -math.inf, mass, 0.0)
    logs = s - below
    if positives_reduction == "inside":
        loss = count.double().log() - log_sum(logs, safe)
    else:
        loss = -(logs * positive).sum(1) / (count if positives_reduction == "mean" else 1)
    for i in range(len(s)) if spread else ():  # 1 - p_j as the sum of all others
        kept = (positive | (weight > 0))[i].nonzero()[:, 0]
        of_all = s[i, kept] + torch.where(positive, 1.0, weight)[i, kept].log()
        others = of_all.masked_fill(torch.eye(len(kept)).bool(), -math.inf).logsumexp(1)
        of_row = torch.where(weight[i, kept] > 0, others - everything[i], 0.0).sum() * valid[i]
        loss = loss - spread * F.one_hot(torch.tensor(i), len(s)).double() * of_row
    return torch.where(valid, loss, 0.0)


def truth(a, b, positive, itself, temperature, rule, normalize, **form):
    """The losses of all rows, from masks [M, N] of true positives and of the row itself."""
    cosines = F.normalize(a.detach()) @ F.normalize(b.detach()).T
    positive, negative = positive & ~itself, ~(positive | itself)
    found = cancelled(cosines, negative, rule) if rule else torch.zeros_like(negative)
    if rule and rule.treatment == "attract":
        positive = positive | found
    weight = torch.where(found, rule.weight if rule and rule.treatment == "weight" else 0.0, negative.double())
    scores = F.normalize(a) @ F.normalize(b).T if normalize else a @ b.T
    return row_losses(scores / temperature, positive, weight, **form)


def equal(x, y):
    return x[:, None] == y[None, :]


# Each door as its loss and as the candidates, the true positives and the row itself of its definition.
CLASSES, OTHERS = whole(3, 400, seed=1), whole(3, 400, seed=2)
INDEX, SELF = whole(90, 400, seed=3, low=-1), whole(90, 400, seed=4, low=-1)
DOORS = {
    "nt_xent": (
        lambda a, b, **k: nt_xent(a, **k),
        lambda a, b: (a, equal(*[torch.arange(len(a)) % (len(a) // 2)] * 2), torch.eye(len(a)).bool()),
    ),
    "nt_xent, constant": (
        lambda a, b, **k: nt_xent(a, grad_candidates=False, **k),
        lambda a, b: (a.detach(), equal(*[torch.arange(len(a)) % (len(a) // 2)] * 2), torch.eye(len(a)).bool()),
    ),
    "nt_xent, 3 views": (
        lambda a, b, **k: nt_xent(a, num_views=3, **k),
        lambda a, b: (a, equal(*[torch.arange(len(a)) % (len(a) // 3)] * 2), torch.eye(len(a)).bool()),
    ),
    "sup_con": (
        lambda a, b, **k: sup_con(a, CLASSES[: len(a)], **k),
        lambda a, b: (a, equal(*[CLASSES[: len(a)]] * 2), torch.eye(len(a)).bool()),
    ),
    "sup_con across": (
        lambda a, b, **k: sup_con(
            a,
            CLASSES[: len(a)],
            candidates=b,
            candidate_labels=OTHERS[: len(b)],
            self_index=SELF[: len(a)].clamp_max(len(b) - 1),
            **k,
        ),
        lambda a, b: (
            b,
            equal(CLASSES[: len(a)], OTHERS[: len(b)]),
            equal(SELF[: len(a)].clamp_max(len(b) - 1), torch.arange(len(b))),
        ),
    ),
    "info_nce": (
        lambda a, b, **k: info_nce(a, b, positives=INDEX[: len(a)].clamp_max(len(b) - 1), **k),
        lambda a, b: (
            b,
            equal(INDEX[: len(a)].clamp_max(len(b) - 1), torch.arange(len(b))),
            torch.zeros(len(a), len(b)).bool(),
        ),
    ),
}
PAIRED = ("sup_con across", "info_nce")


def differentiate(loss, tensors):
    """Row losses and the gradients of their weighted sum."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    rows = loss(*tensors)
    grads = torch.autograd.grad(rows, tensors, torch.linspace(0.5, 1.5, len(rows)).to(rows.dtype), allow_unused=True)
    return [rows.detach(), *(grad for grad in grads if grad is not None)]


def agree(door, rule, treatment, m, n, d, temperature, dtype, normalize=True, **form):
    ours, sets = DOORS[door]
    for seed in range(1, 100):
        a, b = numbers(m, d, seed=seed).to(dtype), numbers(n, d, seed=-seed).to(dtype)
        candidates, positive, itself = sets(a, b)
        cosines = F.normalize(a.double()) @ F.normalize(candidates.double()).T
        if settled(cosines, ~(positive | itself)):
            break
    given = rule and rule_of(rule, cosines, door in PAIRED, treatment)
    scale = torch.tensor(temperature, dtype=torch.float64)
    options = {"false_negatives": given, "normalize": normalize, **form}
    mine = differentiate(
        lambda a, b, t: ours(a, b, temperature=t, reduction="none", impl="native", **options), (a, b, scale)
    )
    expected = differentiate(
        lambda a, b, t: truth(a, sets(a, b)[0], positive, itself, t, given, normalize, **form),
        (a.double(), b.double(), scale),
    )
    assert len(mine) == len(expected)
    logit = (1e-13 if dtype == torch.float64 else 4e-7) * (2 + (1 if normalize else d) / temperature)
    for index, (value, true) in enumerate(zip(mine, expected, strict=True)):
        where = (door, rule, treatment, m, n, d, temperature, dtype, normalize, form, index)
        largest = float(true.abs().max())
        bound = logit + (torch.finfo(dtype).eps if value.ndim == 2 else 0)
        if index == 0:  # differences of logits, which may be anywhere near 0
            largest = max(largest, 1 / temperature)
        if value.ndim == 0:  # rows of both signs cancel in the temperature's gradient
            largest = max(largest, m / temperature**2 * (1 if normalize else d))
            bound += 2**-8 if dtype == torch.bfloat16 else 0  # rounded before the second product
        error = float((value.double() - true).abs().max())
        assert error <= bound * largest + 1e-30, (*where, error, bound * largest)


def sizes(door, m, n):
    return (m - m % 6, m - m % 6) if "nt_xent" in door else (m, n if door in PAIRED else m)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("treatment", ["eliminate", "weight"])
@pytest.mark.parametrize("door", DOORS)
def test_levels(door, treatment, dtype):
    for rule, temperature in product(("any", "each", "any, or", "any, and", "each, or"), (0.01, 0.5)):
        agree(door, rule, treatment, *sizes(door, 121, 75), 33, temperature, dtype)
    agree(door, "any", treatment, *sizes(door, 30, 67), 7, 0.3, dtype, normalize=False)
    agree(door, "each, or", treatment, *sizes(door, 200, 130), 17, 0.1, dtype, denominator="negatives")


FORMS = {
    "mean": {},
    "sum": {"positives_reduction": "sum"},
    "inside": {"positives_reduction": "inside"},
    "decoupled": {"denominator": "negatives"},
    "decoupled, inside": {"denominator": "negatives", "positives_reduction": "inside"},
    "own": {"denominator": "own_positive"},
    "own, inside": {"denominator": "own_positive", "positives_reduction": "inside"},
    "spread": {"spread": 0.5},
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("door", DOORS)
def test_attract(door, dtype):
    for index, rule in enumerate(RULES):
        form = FORMS[tuple(FORMS)[index % len(FORMS)]]
        agree(door, rule, "attract", *sizes(door, 121, 75), 33, (0.01, 0.5)[index % 2], dtype)
        agree(door, rule, "attract", *sizes(door, 43, 131), 17, (0.5, 0.01)[index % 2], dtype, **form)
    agree(door, "any, or", "attract", *sizes(door, 30, 67), 7, 0.3, dtype, normalize=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", DOORS)
def test_forms_of_attracted_positives(door, form):
    for temperature, rule in product((0.005, 0.1, 5.0), ("any, or", "topk")):
        agree(door, rule, "attract", *sizes(door, 50, 61), 19, temperature, torch.float32, **FORMS[form])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["own", "own, inside"])
@pytest.mark.parametrize("door", ["sup_con", "sup_con across"])
def test_own_positives_of_groups(door, form, dtype):
    for temperature, rule in product((0.005, 0.03, 0.1, 5.0), (None, "any, or")):
        agree(door, rule, "weight", *sizes(door, 121, 75), 33, temperature, dtype, **FORMS[form])
    agree(door, "topk", "eliminate", *sizes(door, 30, 207), 7, 0.3, dtype, normalize=False, **FORMS[form])


def test_odd_sizes():
    """Around the vector, strip and block sizes."""
    for index, (m, n) in enumerate(product((6, 97, 300), (1, 5, 129, 300))):
        door, form = tuple(DOORS)[index % len(DOORS)], FORMS[tuple(FORMS)[index % len(FORMS)]]
        agree(door, "labels", "attract", *sizes(door, m, n), (3, 16, 129)[index % 3], 0.5, torch.float32, **form)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["labels", "any"])
@pytest.mark.parametrize("form", ["mean", "own, inside"])
def test_blocks_of_several_strips(form, rule):
    for door in ("nt_xent", "sup_con"):
        agree(door, rule, "attract", *sizes(door, 399, 399), 16, 0.2, torch.float32, **FORMS[form])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("form", ["mean", "inside", "own", "own, inside", "decoupled"])
@pytest.mark.parametrize("treatment", ["attract", "eliminate"])
def test_numerical_bar(treatment, form, temperature, dtype):
    """contracts.md section 8 over five seeds, at a size of several strips, against eager PyTorch."""
    rows, ours, rivals, truths = 200, [], [], []
    positive, eye = equal(CLASSES[:rows], CLASSES[:rows]), torch.eye(rows).bool()
    for seed in range(5):
        centres = numbers(3, 48, seed=seed)[CLASSES[:rows]]
        a = (centres + 2 * numbers(rows, 48, seed=seed + 50)).to(dtype)
        rule = FalseNegatives(labels=levels_of(rows, seed), treatment=treatment)
        scale = torch.tensor(temperature, dtype=torch.float64)

        def eager(a, t, rule=rule):
            return truth(a, a, positive, eye, t, rule, True, **FORMS[form])

        def native(a, t, rule=rule):
            options = {"temperature": t, "false_negatives": rule, "reduction": "none", **FORMS[form]}
            return sup_con(a, CLASSES[: len(a)], impl="native", **options)

        true = differentiate(eager, (a.double(), scale))
        for errors, loss in ((ours, native), (rivals, eager)):
            found = differentiate(loss, (a, scale.float()))
            errors.append([(x.double() - y).flatten() for x, y in zip(found, true, strict=True)])
        truths.append([y.flatten() for y in true])
    for index in range(3):
        unit = torch.finfo(dtype if index == 1 else torch.float32).eps / 2
        true, mine, rival = (torch.cat([run[index] for run in runs]) for runs in (truths, ours, rivals))
        if index == 2:  # a sum of terms of both signs, about as large as losses over the temperature
            true = torch.stack([run[0].abs().sum() / temperature for run in truths])
        assert mine.norm() <= max(1.5 * rival.norm(), 8 * unit * true.norm()), index
        assert mine.abs().max() <= max(2 * rival.abs().max(), 16 * unit * true.abs().max()), index


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["mean", "own, inside"])
@pytest.mark.parametrize("door", DOORS)
def test_bits_depend_on_neither_run_nor_threads(door, form, dtype):
    a, b = numbers(228, 24, seed=1).to(dtype), numbers(228, 24, seed=2).to(dtype)
    rule = FalseNegatives(threshold=0.3, labels=levels_of(228, 5), treatment="attract")
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            options = {"false_negatives": rule, "reduction": "none", "impl": "native", **FORMS[form]}
            runs.append(differentiate(lambda a, b, options=options: DOORS[door][0](a, b, **options), (a, b)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(runs[0], run, strict=True))


def compare_all() -> None:
    doors = ("nt_xent", "sup_con", "info_nce")
    for door, (form, rule) in product(doors, (("mean", "any, or"), ("own, inside", "each, or"), ("inside", "topk"))):
        for dtype, temperature in product((torch.float64, torch.float32, torch.bfloat16), (0.01, 0.3)):
            agree(door, rule, "attract", *sizes(door, 103, 67), 21, temperature, dtype, **FORMS[form])


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set(isa, printed_on):
    printed_on(isa, "import test_contrastive_native_rules as t; t.compare_all()")


def test_hand_numbers():
    """Orthogonal rows, all logits 0, of which row 0's positive is row 2, and row 1's row 3."""
    eye = torch.eye(4, dtype=torch.float64)
    some, rest = torch.tensor([0, 0, 1, -1]), {"impl": "native", "reduction": "none"}
    rule = FalseNegatives(labels=some, treatment="attract")
    assert nt_xent(eye, false_negatives=rule, **rest).tolist() == pytest.approx([math.log(3)] * 4)
    # Rows 0 and 1 have two positives and one negative, rows 2 and 3 one and two.
    own = nt_xent(eye, false_negatives=rule, denominator="own_positive", **rest)
    assert own.tolist() == pytest.approx([math.log(2), math.log(2), math.log(3), math.log(3)])
    decoupled = nt_xent(eye, false_negatives=rule, denominator="negatives", **rest)
    assert decoupled.tolist() == pytest.approx([0, 0, math.log(2), math.log(2)])
    total = nt_xent(eye, false_negatives=rule, positives_reduction="sum", **rest)
    assert total.tolist() == pytest.approx([2 * math.log(3)] * 2 + [math.log(3)] * 2)
    # Labels that agree at one of two levels, and at both.
    levels = torch.stack([some, torch.tensor([0, 1, 0, 0])])
    assert nt_xent(eye, false_negatives=FalseNegatives(labels=levels), **rest).tolist() == pytest.approx(
        [0, math.log(2), math.log(2), 0]
    )
    both = FalseNegatives(labels=torch.stack([some, torch.tensor([5, 5, 0, 0])]), levels="each")
    assert nt_xent(eye, false_negatives=both, **rest).tolist() == pytest.approx(
        [math.log(2), math.log(2), math.log(3), math.log(3)]
    )


@pytest.mark.parametrize("denominator", ["all", "own_positive", "negatives"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_but_positives_is_attracted_to(denominator, dtype):
    """With every pair attracted there are no negatives; with none the loss is that without the rule."""
    z = numbers(30, 5).to(dtype)
    options = {"temperature": 0.1, "denominator": denominator, "reduction": "none", "impl": "native"}
    for rule, same in (
        (FalseNegatives(threshold=-1.0, labels=torch.zeros(30).long(), treatment="attract"), torch.zeros(30).long()),
        (FalseNegatives(threshold=math.inf, treatment="attract"), torch.arange(30) % 15),
    ):
        ours = differentiate(lambda z, rule=rule: nt_xent(z, false_negatives=rule, **options), (z,))
        expected = differentiate(lambda z, same=same: sup_con(z, same, **options), (z,))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_all_that_tie_at_the_cut_are_attracted(normalize):
    """Columns 3, 5 and 9 are one row, at place 1 to 3 of the similarity to the first anchors: read back by number."""
    a, b = numbers(50, 30, seed=1).float(), numbers(50, 30, seed=2).float()
    b[[3, 5, 9]] = 5 * (a[0] + a[1])
    for k, attracted in ((1, 3), (3, 3), (4, 4), (60, 49)):
        rule = FalseNegatives(topk=k, treatment="attract")
        mean, total = (
            info_nce(
                a, b, temperature=10.0, normalize=normalize, false_negatives=rule, positives_reduction=reduction,
                reduction="none", impl="native",
            )
            for reduction in ("mean", "sum")
        )  # fmt: skip
        assert (total / mean)[:2].tolist() == pytest.approx([attracted + 1] * 2)
