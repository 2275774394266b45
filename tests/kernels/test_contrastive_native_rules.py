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
    values = values[(values - near).abs() < 0.05]
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
        "always": {"threshold": -1.0, "labels": torch.zeros(m).long() if not pair else None},
    }[name]
    options = {key: value for key, value in options.items() if value is not None}
    return FalseNegatives(treatment=treatment, weight=0.3 if treatment == "weight" else 1.0, **options)


RULES = ("threshold", "rows", "topk", "labels", "any", "each", "any, or", "any, and", "each, or", "topk, and", "never")


def cancelled(i, cosines, negative, rule):
    """Of the columns ``negative`` of row i, those that ``rule`` calls false negatives: bool [N]."""
    found = []
    if rule.threshold is not None:
        cut = rule.threshold[i] if isinstance(rule.threshold, torch.Tensor) else rule.threshold
        found.append(cosines > cut)
    if rule.topk is not None:
        columns = negative.nonzero()[:, 0]
        best = columns[cosines[columns].argsort(descending=True)]
        left = cosines[best[: rule.topk + 1]]
        assert len(left) <= rule.topk or left[-2] - left[-1] > MARGIN
        found.append(torch.isin(torch.arange(len(cosines)), best[: rule.topk]))
    if rule.labels is not None:
        rows, columns = rule.labels if isinstance(rule.labels, tuple) else (rule.labels, rule.labels)
        of_levels = list(zip(rows, columns, strict=True)) if rows.ndim == 2 else [(rows, columns)]
        equal = torch.stack([(of_row[i] >= 0) & (of_row[i] == of_column) for of_row, of_column in of_levels])
        found.append(equal.all(0) if rule.levels == "each" else equal.any(0))
    every = torch.stack(found)
    return negative & (every.all(0) if rule.combine == "and" else every.any(0))


def row_loss(s, positive, weight, reduction, denominator, spread):
    """The loss of a row with logits s [N] and weights of its negatives in the denominator (0 elsewhere), [N]."""
    negative = weight > 0
    if not positive.any() or (denominator == "negatives" and not negative.any()):
        return 0.0 * s.sum()
    mass = (s[negative] + weight[negative].log()).logsumexp(0) if negative.any() else torch.tensor(-math.inf)
    everything = torch.logaddexp(mass, s[positive].logsumexp(0))
    logs = s[positive] - {
        "all": everything, "own_positive": torch.logaddexp(mass, s[positive]), "negatives": mass
    }[denominator]  # fmt: skip
    if reduction == "inside":
        loss = math.log(len(logs)) - logs.logsumexp(0)
    else:
        loss = -logs.sum() / (len(logs) if reduction == "mean" else 1)
    if spread:
        share = weight[negative].log() + s[negative] - everything
        loss = loss - spread * torch.log1p(-share.exp()).sum()
    return loss


def truth(a, b, positive, itself, temperature, rule, normalize, positives_reduction="mean", denominator="all",
          spread=0.0):  # fmt: skip
    """The losses of all rows, from masks [M, N] of true positives and of the row itself."""
    units = F.normalize(a.detach()), F.normalize(b.detach())
    cosines = units[0] @ units[1].T
    scores = (F.normalize(a) @ F.normalize(b).T if normalize else a @ b.T) / temperature
    rows = []
    for i in range(len(a)):
        kept, negative = positive[i] & ~itself[i], ~positive[i] & ~itself[i]
        found = cancelled(i, cosines[i], negative, rule) if rule else torch.zeros_like(negative)
        weight = negative.double()
        weight[found] = rule.weight if rule and rule.treatment == "weight" else 0.0
        kept = kept | found if rule and rule.treatment == "attract" else kept
        rows.append(row_loss(scores[i], kept, weight, positives_reduction, denominator, spread))
    return torch.stack(rows)


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
    a, b = (numbers(size, d, seed=seed).to(dtype) for size, seed in ((m, 1), (n, 2)))
    candidates, positive, itself = sets(a, b)
    cosines = F.normalize(a.double()) @ F.normalize(candidates.double()).T
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
