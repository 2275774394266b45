"""The kernels for few rows, interpreted: ``test_contrastive_triton.py`` runs this in a child process.

Here is what they alone do: reductions, both directions of CLIP, two launches. ``triton_interpreted.py`` has the rules.
Truth is float64 on whole matrices.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from clead_kernels import FalseNegatives, _library, clip_loss, info_nce, nt_xent, sup_con
from clead_kernels import _arguments as arguments
from clead_kernels.contrastive import small, triton_small, triton_small_configs
from clead_kernels.contrastive.pairs import Pairs


def rows_of(a, b, positive, excluded, t):
    logits = F.normalize(a) @ F.normalize(b).T / t
    count = positive.sum(1)
    over_all = logits.masked_fill(excluded, -math.inf).logsumexp(1)
    return torch.where(count > 0, over_all - (logits * positive).sum(1) / count.clamp_min(1), 0.0), count


def data(rows, columns, width=20, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, width, generator=generator) for count in (rows, columns))
    common = min(rows, columns)
    b[:common] += a[:common]
    return a.to(dtype), b.to(dtype)


def gradients(call, a, b, t, dtype):
    """Loss, and three times its gradients by the rows and the temperature, in float64."""
    a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
    t = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    loss = call(a, b, t)
    grads = torch.autograd.grad(3 * loss, (a, b, t), allow_unused=True)
    return [loss.detach().double(), *(grad.double() for grad in grads if grad is not None)]


def assert_close(got, truth, bar=2e-6):
    assert len(got) == len(truth)
    for i, (x, y) in enumerate(zip(got, truth, strict=True)):
        assert x.isfinite().all()
        assert float((x - y).norm()) <= bar * max(float(y.norm()), 1e-3), i


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1, 4])  # 2, 3 and 4 have no positive
SELF = torch.eye(9, dtype=torch.bool)
WEIGHTS = torch.linspace(0.2, 1.8, 9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid", "none"])
@pytest.mark.parametrize("form", ["plain", "weights", "sum of positives"])
def test_reductions(reduction, form):
    positive = (LABELS[:, None] == LABELS) & ~SELF
    options = {"weights": {"weights": WEIGHTS}, "sum of positives": {"positives_reduction": "sum"}}.get(form, {})

    def plain(a, b, t):
        rows, count = rows_of(a, a, positive, SELF, t)
        rows = rows * (WEIGHTS if form == "weights" else count if form == "sum of positives" else 1)
        of = {"mean": 1 / 9, "mean_valid": 1 / 6}.get(reduction, 1)
        return rows.sum() * of if reduction != "none" else rows @ torch.linspace(1, 2, 9, dtype=rows.dtype)

    def ours(a, b, t):
        loss = sup_con(a, LABELS, temperature=t, reduction=reduction, impl="triton", **options)
        assert loss.shape == ((9,) if reduction == "none" else ())
        return loss @ torch.linspace(1, 2, 9) if reduction == "none" else loss

    a, b = data(9, 9)
    assert_close(gradients(ours, a, b, 0.2, torch.float32), gradients(plain, a, b, 0.2, torch.float64))


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("rows", [1, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (127, 129))])
def test_ragged_rows_of_all_doors(rows, learnable):
    """clip_loss has equally many rows of both, info_nce a queue, nt_xent two views."""
    a, b = data(rows, rows + 5)
    diagonal = torch.eye(rows, rows + 5, dtype=torch.bool)
    none = torch.zeros_like(diagonal)
    pair, alone = torch.eye(2 * rows, dtype=torch.bool).roll(rows, 1), torch.eye(2 * rows, dtype=torch.bool)
    both = (diagonal[:, :rows], none[:, :rows])

    def plain(a, b, t):
        views, c = torch.cat([a, b[:rows]]), b[:rows]
        clip = rows_of(a, c, *both, t)[0].mean() / 2 + rows_of(c, a, *both, t)[0].mean() / 2
        return clip + rows_of(a, b, diagonal, none, t)[0].mean() + rows_of(views, views, pair, alone, t)[0].mean()

    def ours(a, b, t):
        options = {"temperature": t if learnable else 0.2, "impl": "triton"}
        parts = (
            clip_loss(a, b[:rows], **options),
            info_nce(a, b, **options),
            nt_xent(torch.cat([a, b[:rows]]), **options),
        )
        return parts[0] + parts[1] + parts[2]

    got, truth = gradients(ours, a, b, 0.2, torch.float32), gradients(plain, a, b, 0.2, torch.float64)
    assert_close(got, truth if learnable else truth[:3])


@pytest.mark.slow
def test_many_programs_and_tiles():
    a = data(1000, 1, width=16, dtype=torch.float16)[0]
    partner, alone = torch.eye(1000, dtype=torch.bool).roll(500, 1), torch.eye(1000, dtype=torch.bool)
    got = gradients(lambda a, b, t: nt_xent(a, temperature=0.2, impl="triton"), a, 0 * a, 0.2, torch.float16)
    truth = gradients(lambda a, b, t: rows_of(a, a, partner, alone, t)[0].mean(), a, 0 * a, 0.2, torch.float64)
    assert_close(got[:1], truth[:1])
    assert_close(got[1:], truth[1:2], 2**-10)


@pytest.mark.parametrize("temperature", [0.02, 0.1])  # an offset per row, the common one
def test_errors_are_not_larger_than_those_of_eager_pytorch(temperature):
    """contracts.md section 8, over five seeds: mean Frobenius error of rows and gradient; the output has 24 bits."""
    partner, alone = torch.eye(40, dtype=torch.bool).roll(20, 1), torch.eye(40, dtype=torch.bool)

    def error(call, x, dtype, truth):
        x = x.to(dtype).requires_grad_()
        rows = call(x)
        found = rows, *torch.autograd.grad(rows.sum(), x)
        return [float((y.detach().double() - z).norm() / z.norm()) for y, z in zip(found, truth, strict=True)]

    ours, theirs = [], []
    for seed in range(5):
        x = torch.cat(data(20, 20, width=32, seed=seed))
        exact = x.double().requires_grad_()
        rows = rows_of(exact, exact, partner, alone, temperature)[0]
        truth = rows.detach(), *torch.autograd.grad(rows.sum(), exact)
        eager = error(lambda x: rows_of(x, x, partner, alone, temperature)[0], x, torch.float32, truth)
        call = partial(nt_xent, temperature=temperature, reduction="none", impl="triton")
        ours.append(error(call, x, torch.float32, truth))
        theirs.append(eager)
    for mine, bar in zip(torch.tensor(ours).mean(0), torch.tensor(theirs).mean(0), strict=True):
        assert mine <= max(1.5 * bar, 8 * 2**-24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    a, b = data(33, 33, dtype=dtype)
    positive = torch.eye(33, dtype=torch.bool)

    def plain(a, b, t):
        return (
            rows_of(a, b, positive, ~positive & positive, t)[0] + rows_of(b, a, positive, ~positive & positive, t)[0]
        ).mean() / 2

    got = gradients(lambda a, b, t: clip_loss(a, b, temperature=0.1, impl="triton"), a, b, 0.1, dtype)
    truth = gradients(plain, a, b, 0.1, torch.float64)
    assert_close(got[:1], truth[:1])
    assert_close(got[1:], truth[1:3], torch.finfo(dtype).eps)


def test_clip_with_rules_that_differ_by_direction():
    """A threshold per row, and clusters of either side; attraction makes positives that are not mutual."""
    a, b = data(30, 30, seed=1)
    ours_clusters, theirs = torch.arange(30) % 5 - 1, torch.arange(30) % 7 - 1
    cut = torch.linspace(-0.3, 0.6, 30)
    own = torch.eye(30, dtype=torch.bool)
    known = (ours_clusters[:, None] == theirs) & (ours_clusters >= 0)[:, None]

    def plain(a, b, t):
        cosine = (F.normalize(a) @ F.normalize(b).T).detach()
        there = own | (cosine > cut[:, None]) | known
        back = own | (cosine > cut).T | known.T
        none = own & ~own
        return (rows_of(a, b, there, none, t)[0] + rows_of(b, a, back, none, t)[0]).mean() / 2

    rule = FalseNegatives(threshold=cut, labels=(ours_clusters, theirs), treatment="attract")
    got = gradients(
        lambda a, b, t: clip_loss(a, b, temperature=t, false_negatives=rule, impl="triton"), a, b, 0.3, torch.float32
    )
    assert_close(got, gradients(plain, a, b, 0.3, torch.float64))


def test_zero_rows_get_no_gradient_and_lonely_rows_no_loss():
    x = data(8, 8)[0]
    x[3] = 0.0
    x.requires_grad_()
    loss = nt_xent(x, temperature=0.2, impl="triton")
    (grad,) = torch.autograd.grad(loss, x)
    assert (grad[3] == 0).all()
    assert grad.isfinite().all()
    assert grad[0].norm() > 0
    lonely = sup_con(x, torch.arange(8), reduction="mean_valid", impl="triton")
    assert lonely.item() == 0.0
    assert (torch.autograd.grad(lonely, x)[0] == 0).all()


def test_a_bad_index_is_no_positive():
    """On a CUDA device indices are not read; one that int32 cannot hold must not become another one."""
    a, b = data(5, 6)
    bad = torch.tensor([0, 6, 2**32 + 2, 2**33, 4])
    loss = small.loss(a, b, None, 0.2, True, "none", False, None, False, Pairs(positive_index=bad))
    assert (loss[1:4] == 0).all()
    assert (loss[[0, 4]] > 0).all()


class Launches(TorchDispatchMode):
    """Ops that would launch something on a device: not views and empty tensors, and the kernels are counted apart."""

    FREE = ("empty", "new_empty", "empty_like", "detach", "view", "expand", "alias", "unsqueeze", "select")

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten" and function.__name__.split(".")[0] not in self.FREE:
            self.ops.append(function.__name__)
        return function(*args, **(kwargs or {}))


def doors():
    a, b = data(12, 15)
    c, t = data(12, 12)[1], torch.tensor(0.2)
    labels, weights = torch.arange(12) % 4, torch.ones(12)
    rule = FalseNegatives(threshold=0.3, labels=labels)
    return {
        "nt_xent": (lambda: nt_xent(a, impl="triton"), (a,)),
        "nt_xent, three views": (lambda: nt_xent(a, num_views=3, temperature=t, impl="triton"), (a, t)),
        "nt_xent with rules": (lambda: nt_xent(a, false_negatives=rule, impl="triton"), (a,)),
        "sup_con": (lambda: sup_con(a, labels, temperature=t, reduction="mean_valid", impl="triton"), (a, t)),
        "info_nce": (lambda: info_nce(a, b, temperature=t, weights=weights, impl="triton"), (a, b, t)),
        "clip_loss": (lambda: clip_loss(a, c, temperature=t, impl="triton"), (a, c, t)),
    }


@pytest.mark.parametrize("door", doors())
@pytest.mark.parametrize("direct", [True, False])
def test_two_launches(door, direct, monkeypatch):
    """Reduction, its gradient, norms and conversions included; the counter is made once per stream."""
    monkeypatch.setattr(arguments, "values_readable", lambda _: False)  # as on a CUDA device
    if direct:  # else the mode that counts makes it take the op
        monkeypatch.setattr(_library, "watched", lambda *_: False)
    call, inputs = doors()[door]
    for x in inputs:
        x.requires_grad_()
    call()
    launched, launch = [], triton_small.Plan.launch

    def counted(plan, name, *rest):
        launched.append(name)
        with _disable_current_modes():  # the interpreter has ops of its own
            launch(plan, name, *rest)

    monkeypatch.setattr(triton_small.Plan, "launch", counted)
    upstream = torch.tensor(2.0)
    with Launches() as forward:
        loss = call()
    assert (launched, forward.ops) == (["forward"], [])
    with Launches() as backward:
        grads = torch.autograd.grad(loss, inputs, upstream)
    assert (launched, backward.ops) == (["forward", "backward"], [])
    assert all(grad.shape == x.shape and grad.dtype == x.dtype for grad, x in zip(grads, inputs, strict=True))


def test_the_counter_is_zero_again():
    nt_xent(data(40, 1)[0], impl="triton")
    assert triton_small._counters
    assert all(int(counter) == 0 for counter in triton_small._counters.values())


def test_the_op_and_the_way_past_it_give_the_same_bits(monkeypatch):
    a, b = data(20, 20)
    results = []
    for watched in (False, True):
        monkeypatch.setattr(_library, "watched", lambda *_, watched=watched: watched)
        results.append(
            gradients(lambda a, b, t: clip_loss(a, b, temperature=t, impl="triton"), a, b, 0.2, torch.float32)
        )
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_large_calls_and_other_forms_go_elsewhere(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(small, "loss", refuse)
    monkeypatch.setattr(small, "MAX_ROWS", 7)
    a = data(8, 1)[0]
    assert nt_xent(a, impl="triton").ndim == 0
    monkeypatch.setattr(small, "MAX_ROWS", 8)
    monkeypatch.setattr(small, "MAX_WIDTH", 19)
    assert nt_xent(a, impl="triton").ndim == 0
    monkeypatch.setattr(small, "MAX_WIDTH", 20)
    with pytest.raises(AssertionError):
        nt_xent(a, impl="triton")


@pytest.mark.parametrize("watched", [True, False])
def test_a_second_derivative_is_refused(watched, monkeypatch):
    monkeypatch.setattr(_library, "watched", lambda *_: watched)
    a = data(6, 1)[0].requires_grad_()
    (grad,) = torch.autograd.grad(nt_xent(a, impl="triton"), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.sum().backward()


def test_the_op_is_well_behaved():
    a, b = data(6, 8)
    pairs = Pairs(positive_offset=0)
    t = torch.tensor(0.2, requires_grad=True)
    for reduction in ("mean", "none"):
        arguments = (a.requires_grad_(), b.requires_grad_(), t, 0.0, True, reduction, False, None, False, *pairs)
        # The traced op is not compared: statistics has places that nothing is written to. The next test compiles it.
        utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(small.forward_op, arguments, test_utils=utilities)


def test_it_compiles_without_a_break():
    a = data(8, 1)[0].requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(x):
        return nt_xent(2 * x, temperature=0.2, impl="triton")

    loss = call(a)
    assert_close([loss.detach().double()], [nt_xent(2 * a.detach().double(), temperature=0.2, impl="reference")])
    (grad,) = torch.autograd.grad(loss, a)
    (expected,) = torch.autograd.grad(nt_xent(a, temperature=0.2, impl="reference"), a)
    assert_close([grad], [expected])


def test_every_program_has_a_place_for_its_sum():
    for (kernel, *_), (few, many) in triton_small_configs.TABLE.items():
        if kernel == "forward":
            assert 2 * -(-triton_small_configs.FEW_ROWS // few.block_m) <= small.PROGRAMS
            assert 2 * -(-small.MAX_ROWS // many.block_m) <= small.PROGRAMS
