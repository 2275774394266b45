"""Drawn calls of pgd_step_, project_ and random_start_: against float64 loops over samples, native against reference.

From the loops they may differ by one rounding to the dtype of the images, towards x; from each other by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clead_kernels import pgd_step_, project_, random_start_

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "backwards": lambda x: (
        x.permute(*reversed(range(x.ndim)))
        .clone(memory_format=torch.contiguous_format)
        .permute(*reversed(range(x.ndim)))
    ),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "off by one": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


@dataclass
class Case:
    """One call, as drawn; the numbers of its tensors come from ``seed``."""

    norm: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layouts: list[str]
    bounds: tuple[float, float] | None
    radius: str
    eps: float
    step: float
    part: float
    targeted: bool
    clean_bytes: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    norm, dimensions = draw(st.sampled_from(["linf", "l2", "l1"])), st.lists(st.integers(1, 7), max_size=3)
    number = st.floats(0, 4, width=32) | st.sampled_from([0.0, 1e-3, 2.0**-20])
    return Case(
        norm=norm,
        shape=(draw(st.integers(1, 5)), *draw(dimensions)),
        dtype=draw(st.sampled_from(FLOATS)),
        layouts=[draw(st.sampled_from(list(LAYOUTS))) for _ in range(3)],
        bounds=draw(st.sampled_from([(0.0, 1.0), (0.25, 0.75), (-2.0, 0.5), None])),
        radius=draw(st.sampled_from(["float", "0-d", "[B]", "[B, 1]"] + ["channel", "element"] * (norm == "linf"))),
        eps=draw(number | st.just(math.inf)) / (8 if norm == "linf" else 1),
        step=draw(number) / (8 if norm == "linf" else 1),
        part=draw(st.sampled_from([0.01, 0.25, 0.5, 1.0]) | st.floats(0.01, 1.0)),
        targeted=draw(st.booleans()),
        clean_bytes=draw(st.integers(0, 3)) == 0,
        seed=draw(st.integers(0, 2**32)),
    )


def images_of(case: Case) -> list[Tensor]:
    """x_adv, grad and x; some pixels at the bounds, some gradients 0 or equal, some x_adv out of bounds."""
    generator = torch.Generator().manual_seed(case.seed)
    low, high = case.bounds or (-1.0, 1.0)
    x, x_adv, kind = torch.rand(3, *case.shape, generator=generator, dtype=torch.float64)
    grad = torch.randn(case.shape, generator=generator, dtype=torch.float64)
    grad = (grad * 2).round() if case.seed % 2 else grad
    x, x_adv = low + (high - low) * x, low + (high - low) * (x_adv if case.seed % 3 else 3 * x_adv - 1)
    x[kind < 0.1], x[kind > 0.9], x_adv[kind < 0.05], x_adv[kind > 0.8] = low, high, low, high
    clean = (x.clamp(0, 1) * 255).to(torch.uint8) if case.clean_bytes else x.to(case.dtype)
    images = (x_adv.to(case.dtype), grad.to(case.dtype), clean)
    return [LAYOUTS[layout](image) for layout, image in zip(case.layouts, images, strict=True)]


def radius_of(case: Case, value: float) -> float | Tensor:
    ones = (1,) * (len(case.shape) - 1)
    shapes = {
        "0-d": (),
        "[B]": case.shape[:1],
        "[B, 1]": (case.shape[0], *ones),
        "channel": (1, *case.shape[1:2], *ones[1:]),
        "element": case.shape,
    }
    if case.radius == "float":
        return value
    factors = torch.rand(shapes[case.radius], generator=torch.Generator().manual_seed(case.seed + 1)) + 0.5
    return (value * factors).to(torch.float64 if case.dtype == torch.float64 else torch.float32)


def samples(radius: float | Tensor, x: Tensor) -> list[list[float]]:
    """``radius`` for every element of every sample."""
    tensor = torch.as_tensor(radius, dtype=torch.float64)
    tensor = tensor.reshape(-1, *(1,) * (x.ndim - 1)) if tensor.ndim == 1 else tensor
    return tensor.expand(x.shape).flatten(1).tolist() if x.ndim > 1 else tensor.expand(x.shape)[:, None].tolist()


def lists(x: Tensor) -> list[list[float]]:
    return x.double().reshape(len(x), -1).tolist()


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def moved(case: Case, start: list[float], grad: list[float], step: list[float], low: float, high: float) -> list[float]:
    """One sample after a step, not yet projected."""
    grad = [-g for g in grad] if case.targeted else grad
    if case.norm == "linf":
        return [a + s * sign(g) for a, g, s in zip(start, grad, step, strict=True)]
    if case.norm == "l2":
        length = math.hypot(*grad)
        return [a + (step[0] * g / length if length else 0.0) for a, g in zip(start, grad, strict=True)]
    free = [g != 0 and (a < high if g > 0 else a > low) for a, g in zip(start, grad, strict=True)]
    ranked = sorted((abs(g) for g, is_free in zip(grad, free, strict=True) if is_free), reverse=True)
    wanted = max(1, math.floor(case.part * len(grad) + 0.5))
    chosen = [f and abs(g) >= ranked[min(wanted, len(ranked)) - 1] for g, f in zip(grad, free, strict=True)]
    share = step[0] / max(1, sum(chosen))
    return [a + share * sign(g) * c for a, g, c in zip(start, grad, chosen, strict=True)]


def projected(case: Case, z: list[float], x: list[float], eps: list[float], low: float, high: float) -> list[float]:
    """One sample, pulled onto the ball (l1: ball and bounds together, by halving the shrinkage) and clamped."""
    if case.norm == "linf":
        z = [min(max(a, c - e), c + e) for a, c, e in zip(z, x, eps, strict=True)]
    elif case.norm == "l2" and (distance := math.dist(z, x)) > eps[0]:
        z = [c + (a - c) * (eps[0] / distance) for a, c in zip(z, x, strict=True)]
    elif case.norm == "l1":
        rooms = [max(0.0, high - c if a > c else c - low) for a, c in zip(z, x, strict=True)]

        def shrunk(by: float) -> list[float]:
            return [min(max(abs(a - c) - by, 0.0), room) for a, c, room in zip(z, x, rooms, strict=True)]

        least, most = 0.0, 0.0 if math.fsum(shrunk(0.0)) <= eps[0] else max(map(abs, map(float.__sub__, z, x)))
        for _ in range(70 if most else 0):
            middle = (least + most) / 2
            least, most = (middle, most) if math.fsum(shrunk(middle)) > eps[0] else (least, middle)
        z = [c + math.copysign(size, a - c) for a, c, size in zip(z, x, shrunk(most), strict=True)]
    return [min(max(a, low), high) for a in z]


def same_everywhere(call: Callable[[Tensor, str], Tensor], x_adv: Tensor, layout: str = "contiguous") -> Tensor:
    """What ``call`` makes of x_adv, in place and with the same bits by the implementation that auto takes."""
    results = []
    for impl in ("reference", "auto"):
        given = LAYOUTS[layout](x_adv)
        assert call(given, impl) is given
        results.append(given)
    assert torch.equal(*results)
    return results[0]


def check_feasible(case: Case, y: Tensor, x: Tensor, eps: float | Tensor, low: float, high: float) -> None:
    assert ((y >= low) & (y <= high)).all()
    if not ((x >= low) & (x <= high)).all():
        return  # the bounds win
    if case.norm == "linf":
        wide = torch.promote_types(case.dtype, torch.float32)
        each = torch.tensor(samples(eps, x), dtype=wide).view(x.shape)
        assert ((y.to(wide) >= x.to(wide) - each) & (y.to(wide) <= x.to(wide) + each)).all()
    else:
        distance = (y.double() - x.double()).reshape(len(x), -1).norm(ORDER[case.norm], dim=1)
        assert (distance <= torch.tensor(samples(eps, x), dtype=torch.float64)[:, 0] * (1 + 1e-6)).all()


def check(case: Case) -> None:
    x_adv, grad, clean = images_of(case)
    low, high = case.bounds or (-math.inf, math.inf)
    x = (clean.to(torch.promote_types(case.dtype, torch.float32)) / 255).to(case.dtype) if case.clean_bytes else clean
    eps, step = radius_of(case, case.eps), radius_of(case, case.step)
    options = {"eps": eps, "norm": case.norm, "bounds": case.bounds}
    sparsity = {"l1_sparsity": case.part} if case.norm == "l1" else {}
    stepped = same_everywhere(
        lambda y, impl: pgd_step_(
            y, grad, clean, step_size=step, targeted=case.targeted, impl=impl, **options, **sparsity
        ),
        x_adv,
        case.layouts[0],
    )
    pulled = same_everywhere(lambda y, impl: project_(y, clean, impl=impl, **options), x_adv, case.layouts[0])
    start = same_everywhere(
        lambda y, impl: random_start_(y, clean, seed=case.seed, impl=impl, **options), x_adv, case.layouts[0]
    )
    check_feasible(case, start, x, eps, low, high)
    inside = bool(((x >= low) & (x <= high)).all())
    for result, is_step in ((stepped, True), (pulled, False)):
        check_feasible(case, result, x, eps, low, high)
        if case.norm == "l1" and not inside:
            continue  # ball and bounds need not meet
        rows = zip(lists(x_adv), lists(grad), lists(x), samples(eps, x), samples(step, x), strict=True)
        wanted = [
            projected(case, moved(case, a, g, s, low, high) if is_step else a, c, e, low, high)
            for a, g, c, e, s in rows
        ]
        truth = torch.tensor(wanted, dtype=torch.float64).view(x.shape)
        numbers = torch.finfo(case.dtype)
        spacing = numbers.eps * truth.abs() + numbers.tiny
        error = result.double() - truth
        slack = 1e-15 * (1 + case.step + x.double().abs() + x_adv.double().abs())
        if case.norm == "linf" and case.dtype != torch.float64:
            slack = slack + 2.0**-23 * truth.abs()
        assert (error.abs() <= spacing + slack).all()
        assert (error * (x.double() - truth).sign() >= -slack).all()  # towards x


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(cases())
def test_some_calls(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=1000, print_blob=True, deadline=None, database=None)
@given(cases())
def test_1000_calls(case: Case) -> None:
    check(case)


def philox(key: int, counter: list[int]) -> list[int]:
    """Philox4x32-10 in the integers of Python (Salmon et al., SC 2011)."""
    keys = [key % 2**32, key >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [right >> 32 ^ counter[1] ^ keys[0], right % 2**32, left >> 32 ^ counter[3] ^ keys[1], left % 2**32]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return counter


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    step=st.integers(0, 2**32 - 1),
    size=st.integers(1, 9),
    eps=st.floats(0, 1, width=32),
)
def test_linf_starts_by_the_generator_in_python(seed: int, ids: list[int], step: int, size: int, eps: float) -> None:
    x = torch.full((len(ids), size), 0.5)
    start = same_everywhere(
        lambda y, impl: random_start_(
            y, x, eps=eps, seed=seed, sample_ids=torch.tensor(ids), step=step, bounds=None, impl=impl
        ),
        torch.empty_like(x).fill_(math.nan),
    )
    for row, sample in zip(start.tolist(), ids, strict=True):
        for element, value in enumerate(row):
            counter = [element // 4, sample % 2**32, sample % 2**64 >> 32, step]
            uniform = (philox(seed, counter)[element % 4] >> 8) * 2.0**-24
            assert value == pytest.approx(0.5 + (2 * uniform - 1) * eps, abs=2.0**-23)
