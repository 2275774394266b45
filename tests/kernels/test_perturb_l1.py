"""The l1 ball: projections certified by the linear program they solve, steps against a float64 loop."""

from __future__ import annotations

import math

import pytest
import torch

from clead_kernels import pgd_step_, project_

pytestmark = pytest.mark.kernels

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IMPLS = ("auto", "reference")


def images(shape, dtype=torch.float64, seed=0):
    """x_adv, grad and x; some pixels of x are at the bounds and some gradients are 0."""
    generator = torch.Generator().manual_seed(seed)
    x_adv, x = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    x.view(-1)[::11], x.view(-1)[5::13], grad.view(-1)[::7] = 0.0, 1.0, 0.0
    return x_adv.to(dtype), grad.to(dtype), x.to(dtype)


def bisected(x_adv, x, eps, low=0.0, high=1.0):
    """The projection of one sample, lists in and out: 80 halvings of the interval that holds λ."""
    rooms = [max(0.0, (c - low) if a < c else (high - c)) for a, c in zip(x_adv, x, strict=True)]

    def moved(shrinkage):
        sizes = [max(abs(a - c) - shrinkage, 0.0) for a, c in zip(x_adv, x, strict=True)]
        return [min(size, room) for size, room in zip(sizes, rooms, strict=True)]

    least, most = 0.0, max(abs(a - c) for a, c in zip(x_adv, x, strict=True))
    if math.fsum(moved(0.0)) <= eps:
        most = 0.0
    for _ in range(80):
        middle = (least + most) / 2
        least, most = (middle, most) if math.fsum(moved(middle)) > eps else (least, middle)
    return [c + math.copysign(size, a - c) for a, c, size in zip(x_adv, x, moved(most), strict=True)]


def furthest(direction, x, eps, low, high):
    """max <direction, v> over the ball and the bounds: a fractional knapsack."""
    value, left = sum(r * c for r, c in zip(direction, x, strict=True)), eps
    for r, c in sorted(zip(direction, x, strict=True), key=lambda pair: -abs(pair[0])):
        take = min(left, (high - c) if r > 0 else (c - low))
        value, left = value + abs(r) * take, left - take
    return value


@pytest.mark.parametrize("impl", IMPLS)
def test_hand_numbers(impl):
    x = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.875], [0.5, 0.5, 0.5]], dtype=torch.float64)
    x_adv = x + torch.tensor([[0.25, -0.5, 0.0], [0.25, -0.25, 0.5], [0.0625, 0.0, -0.0625]], dtype=torch.float64)
    project_(x_adv, x, eps=0.5, norm="l1", impl=impl)
    # λ = 1/8; the third pixel has room for 1/8, and the others share what is left, λ = 1/16; inside already.
    wanted = [[0.125, -0.375, 0.0], [0.1875, -0.1875, 0.125], [0.0625, 0.0, -0.0625]]
    assert torch.equal(x_adv - x, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.25, 0.75), None])
@pytest.mark.parametrize("shape", [(6, 1), (6, 2), (4, 127), (1, 3, 5, 9)])
@pytest.mark.parametrize("impl", IMPLS)
def test_projection_solves_its_linear_program(shape, bounds, impl):
    """y is nearest to z in a convex set if and only if <z - y, v> ≤ <z - y, y> for every v of the set."""
    z, _, x = images(shape)
    low, high = bounds or (-math.inf, math.inf)
    x = x.clamp(low, high)
    z = x + 3 * (z - x)
    for eps in (1e-3, 0.3, 0.2 * x[0].numel()):
        y = project_(z.clone(), x, eps=eps, norm="l1", bounds=bounds, impl=impl)
        assert ((y - x).flatten(1).abs().sum(1) <= eps * (1 + 1e-12)).all() and (y >= low).all() and (y <= high).all()
        for a, b, c in zip(*(t.flatten(1).tolist() for t in (z, y, x)), strict=True):
            residual = [p - q for p, q in zip(a, b, strict=True)]
            reached = math.fsum(r * q for r, q in zip(residual, b, strict=True))
            assert furthest(residual, c, eps, low, high) - reached <= 1e-10 * max(1.0, eps)
            assert b == pytest.approx(bisected(a, c, eps, low, high), abs=1e-12)


@pytest.mark.parametrize("dtype", FLOATS[1:])
@pytest.mark.parametrize("impl", IMPLS)
def test_projection_of_rounded_images(dtype, impl):
    z, _, x = images((4, 3, 8, 8), dtype)
    eps = torch.tensor([0.01, 0.5, 4.0, 1e4])
    y = project_(z.clone(), x, eps=eps, norm="l1", impl=impl)
    assert ((y.double() - x.double()).flatten(1).abs().sum(1) <= eps.double() * (1 + 1e-6)).all()
    assert (y >= 0).all() and (y <= 1).all()
    for b, (a, c, radius) in zip(
        y.flatten(1), zip(*(t.double().flatten(1).tolist() for t in (z, x)), eps.tolist(), strict=True), strict=True
    ):
        wanted = torch.tensor(bisected(a, c, radius), dtype=torch.float64)
        error, centre = b.double() - wanted, torch.tensor(c, dtype=torch.float64)
        spacing = torch.finfo(dtype).eps * torch.maximum(wanted, centre).clamp_min(torch.finfo(dtype).smallest_normal)
        assert (error.abs() <= spacing + 1e-12).all()
        assert (error * (centre - wanted).sign() >= -1e-12).all()  # towards x
    assert torch.equal(y[3], z[3])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("impl", IMPLS)
def test_projecting_again_changes_nothing(dtype, impl):
    z, _, x = images((20, 3, 16, 16), dtype)
    once = project_(z.clone(), x, eps=3.0, norm="l1", impl=impl)
    again = project_(once.clone(), x, eps=3.0, norm="l1", impl=impl)
    torch.testing.assert_close(again, once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e10, 1e300])
@pytest.mark.parametrize("impl", IMPLS)
def test_projection_of_extreme_lengths(scale, impl):
    z = torch.tensor([[3.0, -2.0, 0.5]], dtype=torch.float64) * scale
    y = project_(z.clone(), torch.zeros_like(z), eps=3.0 * scale, norm="l1", bounds=None, impl=impl)
    assert (y / scale)[0].tolist() == pytest.approx([2.0, -1.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_sample_that_is_not_finite_becomes_nan(bad, impl):
    x_adv, x = torch.full((2, 3, 4), 0.9), torch.full((2, 3, 4), 0.5)
    x_adv[0, 1, 2] = bad
    project_(x_adv, x, eps=0.1, norm="l1", impl=impl)
    assert x_adv[0].isnan().all() and x_adv[1].isfinite().all()


def step_loop(x_adv, grad, x, eps, step, part, targeted, low=0.0, high=1.0):
    """One sample in float64 lists, from the definition: sort, choose with ties, move, project."""
    direction = [((g > 0) - (g < 0)) * (-1 if targeted else 1) for g in grad]
    free = [d != 0 and (a < high if d > 0 else a > low) for d, a in zip(direction, x_adv, strict=True)]
    ranked = sorted((abs(g) for g, f in zip(grad, free, strict=True) if f), reverse=True)
    wanted = min(max(1, math.floor(part * len(x) + 0.5)), len(x))
    least = ranked[min(wanted, len(ranked)) - 1] if ranked else math.inf
    chosen = [f and abs(g) >= least for g, f in zip(grad, free, strict=True)]
    share = step / max(1, sum(chosen))
    moved = [a + d * share if c else a for a, d, c in zip(x_adv, direction, chosen, strict=True)]
    return bisected(moved, x, eps, low, high), chosen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_step_matches_the_loop(dtype, targeted, impl):
    x_adv, grad, x = images((6, 3, 5, 7), dtype)
    x_adv.view(-1)[::9], x_adv.view(-1)[4::9] = 0.0, 1.0
    grad[1] = 0
    grad[2] = grad[2].sign() * 0.25  # all tie
    grad[3].view(-1)[3:5] = math.nan
    grad[4].view(-1)[:3] = torch.tensor([math.inf, -math.inf, 1e-30])
    part = torch.tensor([0.01, 0.1, 0.2, 0.5, 0.03, 1.0], dtype=dtype)
    eps, step = torch.linspace(0.5, 30, 6).to(dtype), torch.linspace(0.1, 2, 6).to(dtype)
    wanted = [
        step_loop(*row, targeted)[0]
        for row in zip(
            *(t.double().flatten(1).tolist() for t in (x_adv, grad, x)),
            *(t.tolist() for t in (eps, step, part)),
            strict=True,
        )
    ]
    options = {"eps": eps, "step_size": step, "l1_sparsity": part, "norm": "l1", "targeted": targeted, "impl": impl}
    pgd_step_(x_adv, grad, x, **options)
    truth = torch.tensor(wanted, dtype=torch.float64).reshape(x.shape)
    torch.testing.assert_close(x_adv.double(), truth, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-7)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_step_has_its_length_and_its_number_of_coordinates(impl):
    _, grad, _ = images((5, 3, 8, 8), torch.float32)
    x = torch.full((5, 3, 8, 8), 0.5)
    for part, moving in ((0.05, 10), (0.001, 1), (1.0, 164)):
        y = pgd_step_(x.clone(), grad, x, eps=2.0, step_size=0.5, l1_sparsity=part, norm="l1", impl=impl)
        delta = (y - x).flatten(1)
        torch.testing.assert_close(delta.abs().sum(1), torch.full((5,), 0.5))
        numbers = (delta != 0).sum(1)
        assert (numbers == moving).all() if part < 1 else (numbers == (grad != 0).flatten(1).sum(1)).all()
        chosen, others = grad.flatten(1).abs(), delta == 0
        assert (chosen.masked_fill(others, math.inf).amin(1) >= chosen.masked_fill(~others, 0).amax(1)).all()
        assert (delta * grad.flatten(1) >= 0).all()


@pytest.mark.parametrize(("bounds", "missing"), [(None, 1e-12), ((0.0, 1.0), 0.02)])
def test_a_linear_loss_is_maximised(bounds, missing):
    """Steps of one coordinate reach the optimum over the ball; at the bounds they come close to the knapsack's."""
    _, weight, x = images((3, 40))
    x_adv, (low, high) = x.clone(), bounds or (-math.inf, math.inf)
    for number in range(80):
        options = {"eps": 2.0, "norm": "l1", "l1_sparsity": 0.01, "bounds": bounds}
        pgd_step_(x_adv, weight, x, step_size=0.5 * 0.95**number, **options)
    for a, w, c in zip(x_adv.tolist(), weight.tolist(), x.tolist(), strict=True):
        gain = math.fsum((p - r) * q for p, q, r in zip(a, w, c, strict=True))
        most = furthest(w, c, 2.0, low, high) - furthest(w, c, 0.0, low, high)
        assert most * (1 - missing) <= gain <= most * (1 + 1e-9)
