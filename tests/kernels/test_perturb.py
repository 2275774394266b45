"""pgd_step_ and project_ against float64 loops, hand numbers and the boxes and balls themselves."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.library import opcheck

from clead_kernels import pgd_step_, project_, random_start_
from clead_kernels.perturb import arithmetic, ops

pytestmark = pytest.mark.kernels

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = FLOATS[2:]
IMPLS = ("auto", "reference")
NORMS = ("linf", "l2", "l1")
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


@pytest.fixture
def images():
    """``images(dtype, *shape)``: x, x_adv within [0, 1], and a gradient with zeros."""

    def make(dtype=torch.float32, shape=(5, 3, 4, 7), seed=0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        x.view(-1)[::11] = 0.0
        x.view(-1)[5::13] = 1.0
        x_adv = torch.rand(shape, generator=generator, dtype=torch.float64)
        grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        grad.view(-1)[::7] = 0.0
        return x.to(dtype), x_adv.to(dtype), grad.to(dtype)

    return make


def clip(value, low, high):
    return min(max(value, low), high)


def linf_loop(x_adv, grad, x, eps, step, low=0.0, high=1.0):
    """float64, one element at a time; eps and step are tensors of x's shape."""
    out = []
    for a, g, c, e, s in zip(*(t.double().flatten().tolist() for t in (x_adv, grad, x, eps, step)), strict=True):
        moved = a + s * ((g > 0) - (g < 0))
        out.append(clip(clip(moved, c - e, c + e), low, high))
    return torch.tensor(out, dtype=torch.float64).reshape(x.shape)


def l2_loop(x_adv, grad, x, eps, step, low=0.0, high=1.0):
    """float64, one sample at a time; eps and step are lists with one number per sample."""
    out = []
    for a, g, c, e, s in zip(*(t.double().flatten(1).tolist() for t in (x_adv, grad, x)), eps, step, strict=True):
        length = math.sqrt(sum(v * v for v in g))
        moved = [p + (s * q / length if length else 0.0) for p, q in zip(a, g, strict=True)]
        distance = math.dist(moved, c)
        scale = e / distance if distance > e else 1.0
        out.append([clip(p + (m - p) * scale, low, high) for m, p in zip(moved, c, strict=True)])
    return torch.tensor(out, dtype=torch.float64).reshape(x.shape)


# --- linf -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
def test_linf_hand_numbers(impl):
    x = torch.tensor([[0.5, 0.5, 0.5, 0.875, 0.125, 0.5]])
    x_adv = torch.tensor([[0.5, 0.625, 0.5, 1.0, 0.0, 0.25]])
    grad = torch.tensor([[3.0, 1e-30, -2.0, 5.0, -0.1, 0.0]])
    # free move; stopped by the ball; free move down; stopped by the bounds; ditto; no move, but projected
    wanted = torch.tensor([[0.5625, 0.625, 0.4375, 1.0, 0.0, 0.375]])
    assert pgd_step_(x_adv, grad, x, eps=0.125, step_size=0.0625, impl=impl) is x_adv
    assert torch.equal(x_adv, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["float", "scalar", "sample", "sample4d", "channel", "trailing", "element"])
@pytest.mark.parametrize("impl", IMPLS)
def test_linf_matches_the_loop(images, dtype, kind, impl):
    x, x_adv, grad = images(dtype)
    shape = {
        "float": (),
        "scalar": (),
        "sample": (5,),
        "sample4d": (5, 1, 1, 1),
        "channel": (1, 3, 1, 1),
        "trailing": (3, 1, 1),
        "element": x.shape,
    }[kind]
    radius = 0.05 + 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    full = radius.reshape(5, 1, 1, 1).expand_as(x) if kind == "sample" else radius.expand_as(x)
    wanted = linf_loop(x_adv, grad, x, full, full / 4)
    eps, step_size = (radius.item(), radius.item() / 4) if kind == "float" else (radius, radius / 4)
    pgd_step_(x_adv, grad, x, eps=eps, step_size=step_size, impl=impl)
    torch.testing.assert_close(x_adv.double(), wanted, rtol=0, atol=2e-16 if dtype == torch.float64 else 1.2e-7)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.3])
def test_linf_stays_in_the_box_of_float32_bitwise(images, eps, impl):
    x, x_adv, grad = images(shape=(64, 3, 8, 8))
    for step_size in (eps / 4, 10.0):
        for targeted in (False, True):
            pgd_step_(x_adv, grad, x, eps=eps, step_size=step_size, targeted=targeted, impl=impl)
            assert (x_adv >= x - eps).all()
            assert (x_adv <= x + eps).all()
            assert (x_adv >= 0).all() and (x_adv <= 1).all()
    # The box is reached: with a step of 10 every moved element is at one of its ends.
    moved = grad != 0
    assert torch.equal(x_adv[moved], torch.where(grad > 0, (x - eps).clamp_min(0), (x + eps).clamp_max(1))[moved])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_eps_zero_gives_x(images, dtype, norm):
    x, x_adv, grad = images(dtype)
    for eps in (0.0, torch.zeros(5)):
        y = x_adv.clone()
        assert torch.equal(pgd_step_(y, grad, x, eps=eps, step_size=0.1, norm=norm), x)
        assert torch.equal(project_(x_adv.clone(), x, eps=eps, norm=norm), x)
        assert torch.equal(random_start_(y.fill_(0.7), x, eps=eps, seed=1, norm=norm), x)


@pytest.mark.parametrize("impl", IMPLS)
def test_targeted_steps_down_and_no_bounds_means_no_clipping(images, impl):
    x, _, grad = images(torch.float64)
    up = pgd_step_(x.clone(), grad, x, eps=3.0, step_size=2.0, bounds=None, impl=impl)
    down = pgd_step_(x.clone(), grad, x, eps=3.0, step_size=2.0, bounds=None, targeted=True, impl=impl)
    assert torch.equal(up, x + 2 * grad.sign())
    assert torch.equal(down, x - 2 * grad.sign())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_gradient_without_direction_does_not_move(impl):
    x = torch.full((3, 4), 0.5)
    grad = torch.tensor([[math.nan, 0.0, -0.0, 1.0], [0.0] * 4, [1.0, 2.0, -1.0, math.inf]])
    linf = pgd_step_(x.clone(), grad, x, eps=0.3, step_size=0.25, impl=impl)
    assert torch.equal(linf, x + 0.25 * torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, -1, 1]]))
    l2 = pgd_step_(x.clone(), grad, x, eps=0.3, step_size=0.25, norm="l2", impl=impl)
    assert torch.equal(l2, x)


def test_outside_the_bounds_the_bounds_win():
    x = torch.tensor([[-0.5, 1.5]])
    for norm in NORMS:
        assert torch.equal(project_(x.clone(), x, eps=0.1, norm=norm), torch.tensor([[0.0, 1.0]]))


# --- half precision ---------------------------------------------------------------------------------------------------


def neighbour_towards(x, value, dtype):
    """The truth for one element: the float nearest ``value`` among those of ``dtype`` between x and value."""
    around = torch.tensor(value, dtype=torch.float64).to(dtype)
    candidates = {around.item()}
    for step in (-1, 1):
        candidates.add((around.view(torch.int16) + step).view(dtype).item())
    inside = [c for c in candidates if min(x, value) <= c <= max(x, value)]
    return min(inside, key=lambda c: abs(c - value)) if inside else x


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_round_towards_x(images, dtype, impl):
    x, x_adv, grad = images(dtype, (3, 40), seed=2)
    x[0, 0], x_adv[0, 0] = 0.0, 0.0
    eps, step = 0.1, 0.013
    ours = pgd_step_(x_adv.clone(), grad, x, eps=eps, step_size=step, bounds=None, impl=impl)
    wide = linf_loop(x_adv, grad, x, torch.full_like(x.float(), eps), torch.full_like(x.float(), step), -9, 9).float()
    wanted = [
        neighbour_towards(c, v, dtype) for c, v in zip(x.flatten().tolist(), wide.flatten().tolist(), strict=True)
    ]
    assert torch.equal(ours.flatten(), torch.tensor(wanted, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_stay_inside(images, dtype, norm):
    x, x_adv, grad = images(dtype)
    for step_size in (0.05, 5.0):
        pgd_step_(x_adv, grad, x, eps=0.1, step_size=step_size, norm=norm)
        delta = (x_adv.double() - x.double()).flatten(1)
        radius = delta.norm(p=ORDER[norm], dim=1)
        assert (radius <= 0.1 * (1 + 1e-6)).all() and (x_adv >= 0).all() and (x_adv <= 1).all()
        # Nearly the whole way: what rounding may take is one spacing per element, 2^-8 or 2^-11 of it.
        assert (radius >= 0.07).all()


# --- l2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
def test_l2_hand_numbers(impl):
    x = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    grad = torch.tensor([[3.0, 4.0], [-30.0, 40.0]], dtype=torch.float64)
    x_adv = pgd_step_(x.clone(), grad, x, eps=0.25, step_size=torch.tensor([0.1, 1.0]).double(), norm="l2", impl=impl)
    torch.testing.assert_close(x_adv - x, torch.tensor([[0.06, 0.08], [-0.15, 0.2]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_l2_matches_the_loop(images, dtype, per_sample, impl):
    x, x_adv, grad = images(dtype)
    grad[1] = 0
    grad[2] *= 1e-30
    x_adv[3] = x[3]
    eps = torch.tensor([0.5, 1.0, 0.2, 5.0, 1e-3], dtype=dtype)
    step = torch.tensor([0.1, 1.0, 0.2, 2.0, 0.0], dtype=dtype)
    if not per_sample:
        eps, step = 0.7, 0.3
    wanted = l2_loop(x_adv, grad, x, *((v.tolist() if per_sample else [v] * 5) for v in (eps, step)))
    pgd_step_(x_adv, grad, x, eps=eps, step_size=step, norm="l2", impl=impl)
    torch.testing.assert_close(x_adv.double(), wanted, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-7)


@pytest.mark.parametrize("impl", IMPLS)
def test_l2_distance_holds_to_1e_6(images, impl):
    # Equal elements are the worst case: their rounding errors do not average out.
    for x in (torch.full((4, 3, 32, 32), 0.7), images(shape=(4, 3, 32, 32))[0] * 0.5 + 0.25):
        for eps in (1e-3, 0.5, 3.0):
            x_adv = project_((x + 0.2).clone(), x, eps=eps, norm="l2", impl=impl)
            distance = (x_adv.double() - x.double()).flatten(1).norm(dim=1)
            assert (distance <= eps * (1 + 1e-6)).all()
            assert (distance >= eps * (1 - 6e-8 * 55 / eps)).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160])
@pytest.mark.parametrize("impl", IMPLS)
def test_l2_of_extreme_gradients(scale, impl):
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    grad = torch.tensor([[3.0, -4.0]], dtype=torch.float64) * scale
    x_adv = pgd_step_(x.clone(), grad, x, eps=1.0, step_size=0.1, norm="l2", impl=impl)
    torch.testing.assert_close(x_adv - x, torch.tensor([[0.06, -0.08]], dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
def test_l2_leaves_no_number_of_a_sample_with_nan(impl):
    for spoilt in (0, 1):
        x_adv, x = torch.full((2, 3, 4), 0.9), torch.full((2, 3, 4), 0.5)
        (x_adv, x)[spoilt][0, 1, 2] = math.nan
        project_(x_adv, x, eps=0.1, norm="l2", impl=impl)
        assert x_adv[0].isnan().all() and x_adv[1].isfinite().all()


def test_the_order_of_the_sums():
    def folded(numbers):
        while len(numbers) > 1:
            half = len(numbers) // 2
            numbers = [a + b for a, b in zip(numbers[:half], numbers[half:], strict=True)]
        return numbers[0]

    def total(numbers):
        blocks = [numbers[i : i + 128] for i in range(0, len(numbers), 128)]
        sums = [folded(block + [0.0] * (128 - len(block))) for block in blocks]
        return sums[0] if len(sums) == 1 else total(sums)

    for size in (1, 2, 127, 128, 129, 5000, 128 * 128 + 1):
        terms = torch.rand(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        assert arithmetic.ordered_sum(terms).tolist() == [total(row) for row in terms.tolist()]


def test_roots_are_correctly_rounded():
    x = torch.rand(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 40
    x[:3] = torch.tensor([0.0, math.inf, 4.0])
    assert arithmetic.sqrt(x).tolist() == [math.sqrt(v) for v in x.tolist()]  # IEEE 754's, exact by definition


def test_projection_leaves_what_is_inside_alone(images):
    x, x_adv, _ = images(torch.float32)
    for norm, eps in (("linf", 1.0), ("l2", 100.0)):
        assert torch.equal(project_(x_adv.clone(), x, eps=eps, norm=norm), x_adv)
    once = project_(x_adv.clone(), x, eps=0.1)
    assert torch.equal(project_(once.clone(), x, eps=0.1), once)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("impl", IMPLS)
def test_any_strides(images, norm, impl):
    x, x_adv, grad = images()
    wanted = pgd_step_(x_adv.clone(), grad, x, eps=0.2, step_size=0.1, norm=norm, impl=impl)
    last = {"memory_format": torch.channels_last}
    mixed = pgd_step_(x_adv.clone(**last), grad, x.to(**last), eps=0.2, step_size=0.1, norm=norm, impl=impl)
    assert torch.equal(mixed, wanted) and mixed.is_contiguous(**last)
    big = torch.full((5, 3, 8, 7), 9.0)
    view = big[:, :, 1::2].copy_(x_adv)
    assert torch.equal(pgd_step_(view, grad, x, eps=0.2, step_size=0.1, norm=norm, impl=impl), wanted)
    assert (big[:, :, ::2] == 9).all()
    backwards = x_adv.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert torch.equal(pgd_step_(backwards, grad, x, eps=0.2, step_size=0.1, norm=norm, impl=impl), wanted)
    one = x[:1].expand_as(x)
    apart = pgd_step_(x_adv.clone(), grad, one.clone(), eps=0.2, step_size=0.1, norm=norm, impl=impl)
    assert torch.equal(pgd_step_(x_adv.clone(), grad, one, eps=0.2, step_size=0.1, norm=norm, impl=impl), apart)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0), (3,), (1, 1)])
def test_odd_shapes(norm, shape):
    x, grad = torch.full(shape, 0.5), torch.ones(shape)
    stepped = pgd_step_(x.clone(), grad, x, eps=0.2, step_size=0.1, norm=norm)
    per_sample = math.prod(shape[1:]) if norm == "l2" else 1
    torch.testing.assert_close(stepped, x + 0.1 / math.sqrt(per_sample or 1))
    assert project_(x.clone(), x, eps=0.2, norm=norm).shape == shape
    assert random_start_(x.clone(), x, eps=0.2, seed=0, norm=norm).shape == shape


# --- autograd, registration, compilation ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_stale_saved_tensor_is_noticed(images, norm, impl):
    x, x_adv, grad = images()
    weight = torch.ones_like(x, requires_grad=True)
    for write in (
        lambda: pgd_step_(x_adv, grad, x, eps=0.2, step_size=0.1, norm=norm, impl=impl),
        lambda: project_(x_adv, x, eps=0.2, norm=norm, impl=impl),
        lambda: random_start_(x_adv, x, eps=0.2, seed=0, norm=norm, impl=impl),
    ):
        loss, version = (weight * x_adv).sum(), x_adv._version
        write()
        assert x_adv._version == version + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_x_adv_that_requires_grad_is_refused_and_works_under_no_grad(images):
    x, x_adv, grad = images()
    x_adv.requires_grad_()
    for call in (
        lambda: pgd_step_(x_adv, grad, x, eps=0.2, step_size=0.1),
        lambda: project_(x_adv, x, eps=0.2),
        lambda: random_start_(x_adv, x, eps=0.2, seed=0),
    ):
        with pytest.raises(ValueError, match=r"requires grad.*no_grad"):
            call()
        with torch.no_grad():
            call()
    # x and grad may carry a graph; nothing of it reaches x_adv.
    y = x.clone()
    pgd_step_(y, grad.clone().requires_grad_(), x.clone().requires_grad_(), eps=0.2, step_size=0.1)
    assert not y.requires_grad
    with torch.inference_mode():
        pgd_step_(x.clone(), grad, x, eps=0.2, step_size=0.1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_opcheck(images, norm, impl):
    x, x_adv, grad = images()
    eps, none = torch.full((5, 1, 1, 1), 0.1), None
    ids = torch.arange(5)
    scalars, tensors = ((0.1, 0.02), (0.1, 0.02, 0.3))[norm == "l1"], (none, none, none)[: 2 + (norm == "l1")]
    opcheck(ops.PGD_STEP[norm][impl], (x_adv, grad, x, *scalars, *tensors, 0.0, 1.0, False))
    opcheck(ops.PGD_STEP[norm][impl], (x_adv, grad, x, *scalars, eps, *tensors[1:], -math.inf, math.inf, True))
    opcheck(ops.MOMENTUM[impl], (x_adv, grad, 0.9))
    opcheck(ops.PROJECT[norm][impl], (x_adv, x, 0.1, none, 0.0, 1.0))
    opcheck(ops.RANDOM_START[norm][impl], (x_adv, x, 0.0, eps, -5, ids, 3, 0.0, 1.0))


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attacked(x, grad, eps, step, norm, impl="auto"):
    x_adv = x.clone()
    random_start_(x_adv, x, eps=eps, seed=2**64 - 3, step=step, norm=norm, impl=impl)
    pgd_step_(x_adv, grad, x, eps=eps, step_size=eps / 4, norm=norm, impl=impl)
    return project_(x_adv, x, eps=eps / 2, norm=norm, impl=impl) * 2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dtype", "dynamic"), [(torch.float32, None), (torch.float32, True), (torch.bfloat16, None)])
def test_compiles_without_breaks(images, fresh_compiler, dtype, dynamic, norm):
    compiled = torch.compile(attacked, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size, eps, step in ((5, 0.1, 0), (6, 0.2, 1), (7, 0.2, 2), (7, torch.full((7,), 0.3), 2)):
        x, _, grad = images(dtype, (size, 3, 4, 4))
        assert torch.equal(compiled(x, grad, eps, step, norm), attacked(x, grad, eps, step, norm))


def test_compiles_with_inductor(images, fresh_compiler):
    x, _, grad = images()
    compiled = torch.compile(attacked, fullgraph=True)
    assert torch.equal(compiled(x, grad, 0.1, 0, "linf"), attacked(x, grad, 0.1, 0, "linf"))


# --- refusals ---------------------------------------------------------------------------------------------------------

X = torch.full((2, 3, 4, 4), 0.5)
GOOD = {"x_adv": X, "grad": X, "x": X, "eps": 0.1, "step_size": 0.1}
BUFFER = torch.zeros(3, 3, 4, 4)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps must be a number >= 0, got -0.1"),
        ({"eps": math.nan}, ValueError, "eps must be a number >= 0, got nan"),
        ({"step_size": -1.0}, ValueError, "step_size must be a number >= 0"),
        ({"step_size": math.inf}, ValueError, "step_size must be a number >= 0, got inf"),
        ({"eps": torch.tensor([0.1, -0.2])}, ValueError, "eps must be >= 0 everywhere"),
        ({"eps": torch.tensor([0.1, 0.2, 0.3])}, ValueError, r"eps must be \[B\] or broadcastable to x"),
        ({"eps": torch.tensor([1, 2])}, ValueError, "eps must be a float tensor"),
        ({"eps": torch.full((1, 3, 1, 1), 0.1), "norm": "l2"}, ValueError, r"eps must be \[B\] or \[B,1,...\]"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be"),
        ({"norm": "l7"}, ValueError, "norm must be 'linf', 'l2' or 'l1', got 'l7'"),
        ({"eps": torch.full((1, 3, 1, 1), 0.1), "norm": "l1"}, ValueError, r"eps must be \[B\] or \[B,1,...\]"),
        ({"l1_sparsity": 0.0, "norm": "l1"}, ValueError, r"l1_sparsity must be in \(0, 1\], got 0.0"),
        ({"l1_sparsity": torch.tensor([0.5, 1.5]), "norm": "l1"}, ValueError, r"l1_sparsity must be in \(0, 1\] every"),
        ({"l1_sparsity": torch.tensor([0.5]).int(), "norm": "l1"}, ValueError, "l1_sparsity must be a float tensor"),
        (
            {"momentum_buffer": X[:1].clone()},
            ValueError,
            r"momentum_buffer must be torch.float32 \[2, 3, 4, 4\] on cpu",
        ),
        ({"momentum_buffer": X}, ValueError, "momentum_buffer shares memory with grad"),
        ({"momentum_buffer": X.clone(), "momentum": -1.0}, ValueError, "momentum must be a finite number >= 0, got -1"),
        ({"momentum_buffer": X.clone().requires_grad_()}, ValueError, "momentum_buffer requires grad"),
        ({"momentum_buffer": 0.0}, TypeError, "momentum_buffer must be a tensor, got float"),
        ({"grad": X.byte()}, ValueError, "grad must have the dtype and device of x_adv"),
        ({"impl": "magic"}, ValueError, "impl must be one of"),
        ({"impl": "triton"}, NotImplementedError, "triton"),
        ({"grad": None}, TypeError, "grad must be a tensor, got NoneType"),
        ({"grad": X[:1]}, ValueError, r"grad must have the shape of x_adv, \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"),
        (
            {"x": X.double()},
            ValueError,
            "x must have the dtype and device of x_adv, torch.float32 on cpu .*got torch.f",
        ),
        ({"x": X.to("meta")}, ValueError, "got torch.float32 on meta"),
        ({"x_adv": torch.tensor(1.0)}, ValueError, "x_adv must be a float tensor"),
        ({"x_adv": X.int()}, ValueError, "x_adv must be a float tensor"),
        ({"x_adv": X[:1].expand(2, 3, 4, 4)}, ValueError, "expanded view"),
        ({"x_adv": BUFFER[:2], "x": BUFFER[1:]}, ValueError, "x_adv shares memory with x"),
        ({"x_adv": BUFFER[1:], "grad": BUFFER[:2]}, ValueError, "x_adv shares memory with grad"),
    ],
    ids=lambda value: "",
)
def test_refusals_are_one_sentence(bad, error, message):
    arguments = copy.copy(GOOD)
    arguments["x_adv"] = X.clone()
    with pytest.raises(error, match=message) as caught:
        pgd_step_(**(arguments | bad))
    assert "\n" not in str(caught.value)


def test_x_adv_is_x():
    for call in (
        lambda: pgd_step_(X, X.clone(), X, eps=0.1, step_size=0.1),
        lambda: project_(X, X, eps=0.1),
        lambda: random_start_(X, X, eps=0.1, seed=0),
    ):
        with pytest.raises(ValueError, match="x_adv shares memory with x"):
            call()
    # Neighbouring parts of one buffer are fine.
    parts = torch.rand(4, 3)
    project_(parts[:2], parts[2:], eps=0.1)


def test_a_named_implementation_refuses_what_it_cannot_do():
    for images in (X.to("meta"), X.to(torch.float8_e5m2)):
        with pytest.raises(NotImplementedError, match=r"impl='native' cannot run pgd_step_ on .*native \(cpu; float64"):
            pgd_step_(images.clone(), images, images.clone(), eps=0.1, step_size=0.1, impl="native")
