"""How exact the contrastive family is: the numerical bar, low temperatures, degenerate rows and batches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clead_kernels import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con
from clead_kernels.contrastive import reference
from clead_kernels.contrastive.pairs import Pairs

pytestmark = pytest.mark.kernels

HALVES = (torch.bfloat16, torch.float16)
SEEDS = range(5)
ROWS, WIDTH = 48, 32


def eager(anchors, candidates, positive, excluded, temperature):
    """What people write: normalise, multiply, mask, logsumexp; in the dtype of its inputs."""
    logits = F.normalize(anchors) @ F.normalize(candidates).T / temperature
    denominator = logits.masked_fill(excluded, -math.inf).logsumexp(1)
    count = positive.sum(1)
    return torch.where(count > 0, denominator - (logits * positive).sum(1) / count.clamp_min(1), 0.0)


def info_nce_masks():
    eye = torch.eye(ROWS, dtype=torch.bool)
    return eye, torch.zeros_like(eye)


def class_masks(labels):
    eye = torch.eye(ROWS, dtype=torch.bool)
    return (labels[:, None] == labels[None, :]) & ~eye, eye


LABELS = torch.arange(ROWS) % 5
CASES = {
    "info_nce": (lambda a, b, t: info_nce(a, b, temperature=t, reduction="none"), info_nce_masks(), False),
    "nt_xent": (
        lambda a, b, t: nt_xent(a, temperature=t, reduction="none"),
        class_masks(torch.arange(ROWS) % (ROWS // 2)),
        True,
    ),
    "nt_xent, 4 views": (
        lambda a, b, t: nt_xent(a, temperature=t, num_views=4, reduction="none"),
        class_masks(torch.arange(ROWS) % (ROWS // 4)),
        True,
    ),
    "sup_con": (lambda a, b, t: sup_con(a, LABELS, temperature=t, reduction="none"), class_masks(LABELS), True),
}


def measure(rows_of, a, b, weights):
    """Per-row losses and the gradients of their weighted sum, in float64."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    rows = rows_of(a, b)
    grads = torch.autograd.grad(rows, (a, b), weights.to(rows.dtype), allow_unused=True)
    return rows.detach().double(), *(grad.double() for grad in grads if grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("case", CASES)
def test_numerical_bar(randn, case, temperature, dtype):
    """contracts.md section 8, against eager PyTorch in the same dtype; errors pooled over the seeds."""
    ours, (positive, excluded), alone = CASES[case]
    ours_errors, eager_errors, truths = [], [], []
    for seed in SEEDS:
        a = randn(ROWS, WIDTH, dtype=dtype, seed=seed)
        # Positives at a cosine of about 0.7, so that the loss is neither 0 nor hopeless.
        b = (a + randn(ROWS, WIDTH, seed=seed + 100)).to(dtype)
        weights = randn(ROWS, seed=seed).abs() / ROWS

        def plain(a, b, positive=positive, excluded=excluded):
            return eager(a, a if alone else b, positive, excluded, temperature)

        truth = measure(plain, a.double(), b.double(), weights)
        got, rival = measure(lambda a, b: ours(a, b, temperature), a, b, weights), measure(plain, a, b, weights)
        truths.append(truth)
        ours_errors.append([x - y for x, y in zip(got, truth, strict=True)])
        eager_errors.append([x - y for x, y in zip(rival, truth, strict=True)])
    for index in range(len(truths[0])):
        unit = torch.finfo(torch.float32 if index == 0 else dtype).eps / 2
        size = torch.cat([truth[index].flatten() for truth in truths])
        error = torch.cat([errors[index].flatten() for errors in ours_errors])
        rival = torch.cat([errors[index].flatten() for errors in eager_errors])
        assert error.norm() / size.norm() <= max(1.5 * rival.norm() / size.norm(), 8 * unit), index
        worst = error.abs().max() / size.abs().max()
        assert worst <= max(2 * rival.abs().max() / size.abs().max(), 16 * unit), index


@pytest.mark.parametrize("case", CASES)
def test_float64_is_float64_throughout(randn, case):
    """gradcheck's tolerance would let a constant rounded to float32 through (1/3, for one)."""
    ours, (positive, excluded), alone = CASES[case]
    a, b, weights = randn(ROWS, WIDTH, seed=1), randn(ROWS, WIDTH, seed=2), randn(ROWS, seed=3)
    got = measure(lambda a, b: ours(a, b, 0.3), a, b, weights)
    truth = measure(lambda a, b: eager(a, a if alone else b, positive, excluded, 0.3), a, b, weights)
    torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [0.1, 0.025, 0.02])
@pytest.mark.parametrize("door", [info_nce, nt_xent])
def test_dominant_positives_keep_full_relative_accuracy(randn, door, temperature, relative_error):
    """Close positives at a low temperature: eager's softmax minus one cancels, the loss written with log1p does not."""
    base = randn(32, 16, dtype=torch.float32)
    other = base + 0.05 * randn(32, 16, dtype=torch.float32, seed=1)
    positive = torch.eye(32, dtype=torch.bool)

    def exact(a, b):
        """Closed form of the definition: log1p(sum of negatives relative to the positive), in float64."""
        scores = F.normalize(a) @ F.normalize(b).T / temperature
        gaps = scores - scores.diagonal()[:, None]
        return torch.log1p(gaps.exp().masked_fill(positive, 0.0).sum(1))

    def exact_views(a, b):
        both = F.normalize(torch.cat([a, b]))
        scores = both @ both.T / temperature
        partner = torch.arange(64).roll(32)
        gaps = scores - scores[torch.arange(64), partner][:, None]
        left_out = torch.eye(64, dtype=torch.bool)
        left_out[torch.arange(64), partner] = True
        return torch.log1p(gaps.exp().masked_fill(left_out, 0.0).sum(1))

    def ours(a, b):
        if door is info_nce:
            return info_nce(a, b, temperature=temperature, reduction="none")
        return nt_xent(torch.cat([a, b]), temperature=temperature, reduction="none")

    rows = 32 if door is info_nce else 64
    truth = measure(exact if door is info_nce else exact_views, base.double(), other.double(), torch.ones(rows))
    got = measure(ours, base, other, torch.ones(rows))
    for value, expected in zip(got, truth, strict=True):
        # A float32 cosine is off by about 1e-7, its logit by 1e-7 / temperature, and so is the negatives' mass.
        assert relative_error(value, expected) < 3e-7 / temperature
    if door is info_nce and temperature < 0.1:
        rival = measure(
            lambda a, b: eager(a, b, positive, torch.zeros_like(positive), temperature), base, other, torch.ones(32)
        )
        assert relative_error(rival[1], truth[1]) > 100 * relative_error(got[1], truth[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.1, 1.0, 10.0])
def test_every_temperature(randn, dtype, temperature):
    """Antipodal rows, duplicates and random ones: finite, and right in the value."""
    a = randn(12, 8, dtype=dtype, seed=1)
    b = torch.cat([a[:4], -a[4:8], randn(4, 8, dtype=dtype, seed=2)])
    learnable = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(12, dtype=torch.bool)
    expected = eager(a.double(), b.double(), eye, torch.zeros_like(eye), temperature)
    a.requires_grad_()
    rows = info_nce(a, b, temperature=learnable, reduction="none")
    # One rounding of a cosine near 1 is worth 6e-8 / temperature in the loss.
    accuracy = 1e-12 if dtype == torch.float64 else 3e-7 / temperature + 1e-6
    torch.testing.assert_close(rows.double(), expected, rtol=1e-6, atol=accuracy)
    rows.sum().backward()
    assert a.grad.isfinite().all()
    assert learnable.grad.isfinite()
    assert (rows >= 0).all()


def test_large_losses_keep_the_last_digits_of_float64():
    """log(1 + e^21) = 21 + 7.6e-10: torch's softplus returns 21."""
    a, b = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
    loss = info_nce(a, b, temperature=2 / 21)
    assert loss.item() - 21 == pytest.approx(math.log1p(math.exp(-21)), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_dtypes_of_loss_and_gradients(randn, dtype):
    temperature = torch.tensor(0.5, requires_grad=True)
    a, b = randn(4, 3, dtype=dtype, seed=1, grad=True), randn(4, 3, dtype=dtype, seed=2, grad=True)
    loss = clip_loss(a, b, temperature=temperature)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (a.grad.dtype, b.grad.dtype, temperature.grad.dtype) == (dtype, dtype, torch.float32)
    assert temperature.grad.shape == ()


def test_upstream_gradients_are_applied_before_rounding_down(randn):
    """2**-20 / rows would be flushed to 0 in float16 if it came after, and 2**12 would overflow the intermediate."""
    a = randn(64, 8, dtype=torch.float16, seed=1)
    loss = nt_xent(a.requires_grad_(), temperature=0.05)
    (grad,) = torch.autograd.grad(loss * 2.0**12, a, retain_graph=True)
    wide = a.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(nt_xent(wide, temperature=0.05) * 2.0**12, wide)
    assert ((grad.double() - expected).abs() <= expected.abs() * 2**-10 + 2e-4).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_zero_rows(randn, dtype):
    z = randn(6, 4, dtype=dtype)
    z[1] = 0
    z.requires_grad_()
    for loss in (nt_xent(z), sup_con(z, torch.tensor([0, 0, 1, 1, 2, 2])), info_nce(z, z), clip_loss(z, z)):
        (grad,) = torch.autograd.grad(loss, z)
        assert loss.isfinite()
        assert grad.isfinite().all()
        assert (grad[1] == 0).all()
        assert (grad[0] != 0).any()
    # A zero row has cosine 0 to everything: with 5 others and one positive its loss is log 5.
    assert nt_xent(z, reduction="none")[1].item() == pytest.approx(math.log(5), rel=1e-6)


def test_tiny_rows_follow_normalize_down_to_its_floor(randn):
    a = randn(4, 3)
    for row, norm in enumerate((1e-11, 1.1e-12, 1e-13)):
        a[row] *= norm / a[row].norm()
    b = randn(4, 3, seed=1)
    eye = torch.eye(4, dtype=torch.bool)
    rows, grad, _ = measure(lambda a, b: info_nce(a, b, reduction="none"), a, b, torch.ones(4))
    expected, truth, _ = measure(lambda a, b: eager(a, b, eye, torch.zeros_like(eye), 0.1), a, b, torch.ones(4))
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(grad[[0, 1, 3]], truth[[0, 1, 3]])
    assert (grad[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_identical_rows(dtype):
    """Every pair alike: the loss is the logarithm of a count, and there is nothing to gain anywhere."""
    z = torch.full((8, 5), 0.3, dtype=dtype, requires_grad=True)
    loss = nt_xent(z, temperature=0.05)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-5
    attracted = nt_xent(z, temperature=0.05, false_negatives=FalseNegatives(threshold=0.9, treatment="attract"))
    assert attracted.item() == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
def test_rows_without_a_positive_contribute_exactly_0(randn, reduction):
    z = randn(5, 3, grad=True)
    loss = sup_con(z, torch.arange(5), reduction=reduction)
    assert (loss == 0).all()
    assert (torch.autograd.grad(loss.sum(), z)[0] == 0).all()
    temperature = torch.tensor(0.1, requires_grad=True)
    missing = torch.full((5,), -1)
    if reduction != "mean_valid":
        loss = info_nce(z, z, positives=missing, temperature=temperature, reduction=reduction)
        grads = torch.autograd.grad(loss.sum(), (z, temperature))
        assert all((grad == 0).all() for grad in grads)


def test_a_lonely_row_still_is_a_negative_for_the_others(randn):
    z = randn(3, 4, grad=True)
    loss = sup_con(z, torch.tensor([0, 1, 0]), reduction="none")
    (grad,) = torch.autograd.grad(loss[1], z, retain_graph=True)
    assert (grad == 0).all()
    (grad,) = torch.autograd.grad(loss[0], z)
    assert (grad[1] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_negatives_masked_is_exactly_0(randn, dtype):
    z = randn(6, 3, dtype=dtype, grad=True)
    temperature = torch.tensor(0.01, requires_grad=True)
    loss = nt_xent(z, temperature=temperature, false_negatives=FalseNegatives(threshold=-1.0))
    grads = torch.autograd.grad(loss, (z, temperature))
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


def test_one_row(randn):
    one = randn(1, 3, grad=True)
    for loss in (info_nce(one, one), clip_loss(one, one), sup_con(one, torch.tensor([3]))):
        assert loss == 0
        assert (torch.autograd.grad(loss, one)[0] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
def test_empty_batches(randn, reduction):
    """The mean of nothing is 0."""
    none, some = randn(0, 3, grad=True), randn(4, 3, seed=1, grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    losses = [
        sup_con(none, labels, reduction=reduction),
        sup_con(none, labels, candidates=some, candidate_labels=torch.arange(4), reduction=reduction),
    ]
    if reduction != "mean_valid":
        losses += [nt_xent(none, reduction=reduction), info_nce(none, some, reduction=reduction)]
        losses += [clip_loss(none, none, reduction=reduction)]
    for loss in losses:
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert loss.sum() == 0
        grads = torch.autograd.grad(loss.sum(), (none, some), allow_unused=True)
        assert all(grad is None or (grad == 0).all() for grad in grads)


def test_anchors_without_any_candidate(randn):
    rule = FalseNegatives(threshold=0.5, topk=2, treatment="attract")
    loss = info_nce(randn(3, 2, grad=True), randn(0, 2), positives=torch.full((3,), -1), false_negatives=rule)
    assert loss == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_a_cosine_above_the_threshold_by_rounding_is_handled_as_decided(randn, dtype):
    """At the cut the decision may go either way; whatever it was, loss and gradient match float64 given it."""
    z = randn(10, 6, dtype=dtype)
    cosines = F.normalize(z.double()) @ F.normalize(z.double()).T
    cut = cosines[torch.arange(10), torch.arange(10).roll(1)].to(torch.float32)
    cut = cut.clamp(-1, 1)
    rule = FalseNegatives(threshold=cut)
    pairs = Pairs(self_offset=0, groups=torch.arange(5).repeat(2)).with_false_negatives(rule, (10, 10), z.device)
    positive, negative, _ = reference.masks(z, None, pairs)
    decided = ~(positive | negative)
    rows, grad = measure(lambda a, b: nt_xent(a, false_negatives=rule, reduction="none"), z, z, torch.ones(10))
    expected, truth = measure(lambda a, b: eager(a, a, positive, decided, 0.5), z.double(), z.double(), torch.ones(10))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(rows, expected, rtol=tolerance, atol=tolerance)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(grad, truth, rtol=2 * unit, atol=4 * max(unit, 1e-7) * float(truth.abs().max()))


def test_non_contiguous_inputs(randn):
    a, b = randn(3, 8).T, randn(8, 6)[:, ::2]
    a.requires_grad_(), b.requires_grad_()
    ours = torch.autograd.grad(info_nce(a, b), (a, b))
    dense = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in (a, b)]
    torch.testing.assert_close(ours, torch.autograd.grad(info_nce(*dense), dense))


def test_the_scale_of_a_row_does_not_matter(randn):
    """Up to the largest norm float32 can square, as for normalize."""
    z = randn(6, 3, dtype=torch.float32)
    for scale in (1e-9, 1e18):
        torch.testing.assert_close(nt_xent(z * scale), nt_xent(z), rtol=1e-5, atol=0)


def test_half_inputs_beyond_the_range_of_half_arithmetic():
    """1/0.005 = 200 nats and squared norms above 65504 are no concern of float16 inputs."""
    z = torch.tensor([[300.0, 0.0], [0.0, 300.0], [300.0, 1.0], [1.0, 300.0]], dtype=torch.float16)
    loss = nt_xent(z.requires_grad_(), temperature=0.005)
    assert 0 <= loss.item() < 1e-6
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


def test_nan_in_gives_nan_out(randn):
    z = randn(4, 3)
    z[0, 0] = math.nan
    assert nt_xent(z).isnan()


def test_repeated_runs_are_bitwise_equal(randn):
    z = randn(33, 7, dtype=torch.float32, grad=True)
    first, again = (torch.autograd.grad(nt_xent(z[:32]), z)[0] for _ in range(2))
    assert torch.equal(first, again)
