"""The forms of the contrastive losses and the sigmoid loss in C++, against formulas in float64."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, _native, info_nce, nt_xent, sigmoid_loss, sup_con

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}"),
]
NEVER, ATTRACT = -math.inf, -1.0
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pairs_of(door, rows, columns):
    """Labels of rows and columns, and whether the columns are the rows."""
    if door == "info_nce":
        return torch.arange(rows), torch.arange(columns), False
    classes = {"nt_xent": rows // 2, "sup_con": 4, "sup_con, pairs": rows // 2, "sup_con, candidates": 4}[door]
    return torch.arange(rows) % classes, torch.arange(columns) % classes, "candidates" not in door


def scores_of(a, b, metric):
    return a @ b.T if metric == "cosine" else -((a[:, None] - b[None]) ** 2).sum(-1)


def formula(door, a, b, t, cut, weight, *, normalize=True, metric="cosine", beta=0.0, debias=0.0, denominator="all",
            inside=False, spread=0.0):  # fmt: skip
    """Row losses from logits [M, N]; pairs with a cosine above ``cut`` count ``weight`` as negatives, or attract."""
    rows, columns, alone = pairs_of(door, len(a), len(a) if b is None else len(b))
    b = a if alone else b
    cosine = F.normalize(a.detach(), eps=1e-12) @ F.normalize(b.detach(), eps=1e-12).T
    a, b = (F.normalize(x, eps=1e-12) for x in (a, b)) if normalize else (a, b)
    s = scores_of(a, b, metric) / t
    itself = torch.eye(len(a), dtype=torch.bool) if alone else torch.zeros(s.shape, dtype=torch.bool)
    positive = (rows[:, None] == columns) & ~itself
    if weight == ATTRACT:
        positive = positive | ((cosine > cut) & ~itself)
    kappa = torch.ones_like(s).masked_fill(cosine > cut, max(weight, 0.0)).masked_fill(positive | itself, 0.0)
    negative = s + kappa.log()
    total = negative.logsumexp(1)
    if beta:
        number = kappa.sum(1).log()
        total = number + (negative + beta * s).logsumexp(1) - (kappa.log() + beta * s).logsumexp(1)
    count = positive.sum(1).double()
    if debias:
        mean = s.masked_fill(~positive, NEVER).logsumexp(1) - count.log()
        excess = (kappa.sum(1).log() + math.log(debias) + mean - total).exp()
        mass, floor = total + torch.log1p(-excess.clamp_max(0.999)) - math.log1p(-debias), kappa.sum(1).log() - 1 / t
        total = torch.where((excess < 0.999) & (mass > floor), mass, floor)
    total = total[:, None]
    everything = torch.logaddexp(total, s.masked_fill(~positive, NEVER).logsumexp(1, keepdim=True))
    below = {"all": everything, "own_positive": torch.logaddexp(total, s), "negatives": total}[denominator]
    if inside:
        loss = count.log() - (s - below).masked_fill(~positive, NEVER).logsumexp(1)
    else:
        loss = -torch.where(positive, s - below, 0.0).sum(1) / count
    if spread:
        loss = loss - spread * (1 - (negative - everything).exp()).masked_fill(kappa == 0, 1.0).log().sum(1)
    return loss


def ours(door, a, b, t, cut, weight, *, beta=0.0, inside=False, impl="native", **form):
    form |= {"hard_negative_beta": beta, "positives_reduction": "inside" if inside else "mean"}
    rule = None if cut > 1 else FalseNegatives(threshold=cut, treatment="weight", weight=max(weight, 0.0))
    if weight == ATTRACT and rule is not None:
        rule = FalseNegatives(threshold=cut, treatment="attract")
    form |= {"temperature": t, "false_negatives": rule, "reduction": "none", "impl": impl}
    rows, columns, alone = pairs_of(door, len(a), len(a) if b is None else len(b))
    if door == "nt_xent":
        return nt_xent(a, **form)
    if door == "info_nce":
        return info_nce(a, b, **form)
    if alone:
        return sup_con(a, rows, **form)
    return sup_con(a, rows, candidates=b, candidate_labels=columns, **form)


def differentiate(loss, a, b, t):
    """Row losses and the gradients of their weighted sum by anchors, candidates and temperature."""
    inputs = [x.detach().clone().requires_grad_() for x in (a, b) if x is not None]
    inputs.append(torch.tensor(t, dtype=torch.float64, requires_grad=True))
    rows = loss(inputs[0], inputs[1] if b is not None else None, inputs[-1])
    weights = torch.linspace(0.5, 1.5, len(rows), dtype=rows.dtype)
    return [rows.detach(), *torch.autograd.grad(rows, inputs, weights)]


FORMS = {
    "debiased": {"debias": 0.02},
    "debiased to the floor": {"debias": 0.6},
    "debiased, decoupled, inside": {"debias": 0.05, "denominator": "negatives", "inside": True},
    "hard": {"beta": 0.8},
    "hard, decoupled": {"beta": 0.5, "denominator": "negatives"},
    "hard, debiased": {"beta": 1.0, "debias": 0.02},
    "hard, dots": {"beta": 0.3, "normalize": False},
    "euclidean": {"metric": "euclidean"},
    "euclidean, dots": {"metric": "euclidean", "normalize": False},
    "euclidean, decoupled, inside": {"metric": "euclidean", "denominator": "negatives", "inside": True},
    "euclidean, spread": {"metric": "euclidean", "spread": 0.3},
    "euclidean, hard": {"metric": "euclidean", "beta": 0.4},
    "hard, debiased, own": {"beta": 0.5, "debias": 0.02, "denominator": "own_positive"},
    "debiased, own, inside": {"debias": 0.02, "denominator": "own_positive", "inside": True},
    "euclidean, own, inside": {"metric": "euclidean", "denominator": "own_positive", "inside": True},
}
DOORS = ("nt_xent", "info_nce", "sup_con", "sup_con, pairs", "sup_con, candidates")


def data(door, m, n, d, dtype, seed=1):
    """Rows with a direction in common, so that classes matter; candidates where there are others."""
    m += m % 2
    rows, columns, alone = pairs_of(door, m, m if "candidates" not in door else n)
    centres = numbers(max(rows.max(), columns.max()).item() + 1, d, seed=seed + 7)
    a = (centres[rows] + numbers(m, d, seed=seed)).to(dtype)
    return a, None if alone else (centres[columns] + numbers(len(columns), d, seed=seed + 1)).to(dtype)


def agree(door, name, cut, weight, m, n, d, t, dtype):
    form = FORMS[name]
    a, b = data(door, m, n, d, dtype)
    if not form.get("normalize", True):
        t *= d  # logits of the size that cosines have
    actual = differentiate(lambda a, b, t: ours(door, a, b, t, cut, weight, **form), a, b, t)
    wide = None if b is None else b.double()
    truth = differentiate(lambda a, b, t: formula(door, a, b, t, cut, weight, **form), a.double(), wide, t)
    for index, (value, expected) in enumerate(zip(actual, truth, strict=True)):
        gradient = index > 0 and value.dim() == 2
        logit = 1e-12 if dtype == torch.float64 else 4e-7
        bound = (torch.finfo(dtype).eps if gradient else 0) + logit * (2 + 4 / t) * (1 + 2 * form.get("beta", 0))
        # These subtract what may be close; the formula does it, too, and in the term of spread carelessly.
        bound *= 64 if "spread" in form else 4 if "debias" in form else 1
        size = expected.norm() + (1e-3 if gradient else 0.1 * len(a) ** 0.5 if index == 0 else 0.1 * len(a) / t)
        if value.dim() == 0 and dtype == torch.bfloat16:  # rounded before the second product
            bound += 2**-6
        error = (value.double() - expected).norm() / size
        assert error <= bound, (door, name, cut, weight, m, n, d, t, dtype, index, float(error), bound)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FORMS)
def test_values_and_gradients(name, dtype):
    for door, (cut, weight, t) in product(DOORS, ((2.0, 1.0, 0.03), (0.31, 0.4, 0.2), (0.33, ATTRACT, 2.0))):
        agree(door, name, cut, weight, 106, 75, 17, t, dtype)


@pytest.mark.parametrize("name", ["debiased", "hard", "euclidean", "euclidean, hard"])
def test_odd_sizes(name):
    """Around the vector, strip and block sizes."""
    for index, (m, n) in enumerate(product((8, 64, 128, 130), (5, 129, 300))):
        for door in ("info_nce", "sup_con", "sup_con, candidates"):
            agree(door, name, 2.0, 1.0, m, n, (5, 7, 127, 129, 300)[index % 5], 0.5, torch.float32)


def near_points(dtype, rows=96, width=24):
    """Rows in tight clusters far from each other and from the origin."""
    centres = 20 * numbers(6, width, seed=3)
    return (centres[torch.arange(rows) % 6] + 0.05 * numbers(rows, width, seed=4)).to(dtype)


@pytest.mark.parametrize(("classes", "door"), [(6, "grouped"), (48, "listed")])
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_near_points_keep_their_distance(classes, door, dtype):
    """|a|^2 + |b|^2 - 2ab would lose all digits of these distances: |a|^2 is 10^4, |a - b|^2 is 0.1."""
    z, t, labels = near_points(dtype), 0.05, torch.arange(96) % classes
    options = {"metric": "euclidean", "normalize": False, "reduction": "none"}

    def loss(z, _, t):
        return sup_con(z, labels, temperature=t, impl="native", **options)

    def truth(z, _, t):
        s, eye = scores_of(z, z, "euclidean") / t, torch.eye(96, dtype=torch.bool)
        positive = (labels[:, None] == labels) & ~eye
        pulled = torch.where(positive, s, 0.0).sum(1) / positive.sum(1).double()
        return s.masked_fill(eye, NEVER).logsumexp(1) - pulled

    unit = torch.finfo(dtype).eps / 2
    for ours, expected in zip(differentiate(loss, z, None, t), differentiate(truth, z.double(), None, t), strict=True):
        # Of the gradient's sums of weights times rows, which are 50 times as long as the differences of near rows.
        bound = 4000 if ours.dim() == 2 else 200
        assert (ours.double() - expected).norm() <= bound * unit * expected.norm()
    if dtype == torch.float32:
        square = (z * z).sum(1)
        cancelled = square[:, None] + square - 2 * z @ z.T - scores_of(z, z, "euclidean").neg()
        assert cancelled.abs().max() > 1e-3


def pairwise(a, b, t, bias):
    """Row losses of the sigmoid loss."""
    logits = F.normalize(a, eps=1e-12) @ F.normalize(b, eps=1e-12).T / t + bias
    return F.softplus(torch.where(torch.eye(*logits.shape, dtype=torch.bool), -logits, logits), threshold=700).sum(1)


def eager_pairwise(a, b, t, bias):
    """As SigLIP's codes have it."""
    logits = F.normalize(a) @ F.normalize(b).T / t + bias
    return -F.logsigmoid(logits * (2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1)).sum(1)


def differentiate_pairwise(loss, a, b, t, bias):
    inputs = [x.detach().clone().requires_grad_() for x in (a, b)]
    kind = torch.float64 if a.dtype == torch.float64 else torch.float32
    inputs += [torch.tensor(x, dtype=kind, requires_grad=True) for x in (t, bias)]
    rows = loss(*inputs)
    weights = torch.linspace(-0.5, 1.5, len(rows), dtype=rows.dtype)
    return [rows.detach(), *torch.autograd.grad(rows, inputs, weights)]


def native_pairwise(a, b, t, bias):
    return sigmoid_loss(a, b, temperature=t, bias=bias, reduction="none", impl="native")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 129), (64, 64), (96, 97), (128, 300), (193, 200)])
def test_the_sigmoid_loss(m, n, dtype):
    for (t, bias), d in zip(((0.1, -10.0), (0.01, 0.0), (1.0, 3.0)), (33, 7, 300), strict=True):
        a, b = numbers(m, d, seed=1, dtype=dtype), numbers(n, d, seed=2, dtype=dtype)
        t, bias = (torch.tensor(x, dtype=torch.float32).item() for x in (t, bias))
        ours = differentiate_pairwise(native_pairwise, a, b, t, bias)
        truth = differentiate_pairwise(pairwise, a.double(), b.double(), t, bias)
        for index, (value, expected) in enumerate(zip(ours, truth, strict=True)):
            unit = 1e-13 if dtype == torch.float64 else 4e-7
            bound = unit * (4 + 1 / t) + (torch.finfo(dtype).eps if index in (1, 2) else 0)
            if index == 3:  # rows of both signs
                bound += 2**-7 * (dtype == torch.bfloat16)
            error = (value.double() - expected).norm() / (expected.norm() + 1e-3 * (1 + (index == 3) * m / t))
            assert error <= bound, (index, t, d, float(error), bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [-10.0, -4.7, 0.0])
def test_the_numerical_bar_of_the_sigmoid_loss(bias, dtype):
    """contracts.md section 8."""
    ours, rivals, truths = [], [], []
    for seed in range(5):
        a, b = numbers(320, 64, seed=seed, dtype=dtype), numbers(320, 64, seed=seed + 50, dtype=dtype)
        b = (a + b).to(dtype)
        t, shift = (torch.tensor(x, dtype=torch.float32).item() for x in (0.1, bias))
        truth = differentiate_pairwise(pairwise, a.double(), b.double(), t, shift)
        for errors, loss in ((ours, native_pairwise), (rivals, eager_pairwise)):
            values = differentiate_pairwise(loss, a, b, t, shift)
            errors.append([x.double() - y for x, y in zip(values, truth, strict=True)])
        truths.append(truth)
    for index in range(5):
        unit = torch.finfo(dtype if index in (1, 2) else torch.float32).eps / 2
        truth, mine, rival = (torch.cat([run[index].flatten() for run in runs]) for runs in (truths, ours, rivals))
        assert mine.norm() <= max(1.5 * rival.norm(), 8 * unit * truth.norm()), index
        assert mine.abs().max() <= max(2 * rival.abs().max(), 16 * unit * truth.abs().max()), index


def test_parts_of_the_gradient_and_degenerate_rows():
    a, b = numbers(70, 9, seed=1, dtype=torch.float32), numbers(80, 9, seed=2, dtype=torch.float32)
    a[3] = 0
    everything = differentiate_pairwise(native_pairwise, a, b, 0.1, -5.0)
    assert (everything[1][3] == 0).all()
    inputs = [a, b, torch.tensor(0.1), torch.tensor(-5.0)]
    for index in range(4):
        one = [x.clone().requires_grad_(at == index) for at, x in enumerate(inputs)]
        weights = torch.linspace(-0.5, 1.5, 70)
        (grad,) = torch.autograd.grad(native_pairwise(*one), one[index], weights)
        torch.testing.assert_close(grad, everything[index + 1], rtol=1e-5, atol=0)
    form = {"metric": "euclidean", "reduction": "none", "impl": "native", "hard_negative_beta": 0.5}
    (both,) = torch.autograd.grad(info_nce(a.requires_grad_(), b, **form).sum(), a)
    scale = torch.tensor(0.1, requires_grad=True)
    (by_scale,) = torch.autograd.grad(info_nce(a.detach(), b, temperature=scale, **form).sum(), scale)
    assert both.isfinite().all() and by_scale.isfinite()


def call_form(door, name, a, b, t):
    return ours(door, a, b, t, 0.3, 0.5, **FORMS[name])


@pytest.mark.parametrize("dtype", FLOATS[:3])
def test_bits_depend_on_neither_run_nor_threads(dtype):
    z, others = data("info_nce", 230, 230, 40, dtype)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            run = differentiate_pairwise(native_pairwise, z, others, 0.1, -10.0)
            for name, door in product(("hard, debiased", "euclidean"), ("nt_xent", "info_nce", "sup_con")):
                b = others if door == "info_nce" else None
                loss = partial(call_form, door, name)
                run += differentiate(loss, z, b, 0.1)
            runs.append(run)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(runs[0], run, strict=True))


def compare_all() -> None:
    for name, door in product(("hard, debiased", "euclidean, dots", "euclidean, hard"), DOORS):
        for dtype in FLOATS[:3]:
            agree(door, name, 0.3, 0.4, 106, 130, 45, 0.1, dtype)
    for dtype in FLOATS[:3]:
        test_the_sigmoid_loss(96, 130, dtype)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, printed_on):
    printed_on(isa, "import test_contrastive_native_forms as t; t.compare_all()")
