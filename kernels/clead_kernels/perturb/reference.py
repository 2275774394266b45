"""The specification of the perturbation operators, in eager PyTorch. Everything here returns a new tensor.

``eps`` and ``step_size`` are floats or tensors that broadcast against x; for l2 they are constant within a sample.
``low`` and ``high`` are the bounds, infinite where there are none.

Precision. linf works in float32 (float64 for float64 images), so x - eps and x + eps are what float32 says they are.
l2 works in float64, its sums in the order of ``_sum``. Both are then rounded once *towards x*, so that a box or ball
that holds the exact result holds the stored one too; for linf and float32 that rounding changes nothing.

Order. x_adv is projected on the ball first and clamped to the bounds last. For x inside the bounds the clamp never
moves x_adv away from x; for x outside them the bounds win. NaN in x_adv or x stays NaN; l2, which then has no
distance to go by, leaves nothing else of the sample. The sign of a zero is not specified.

Randomness. Element e of a sample, counted in C order whatever the memory format, owns draw e of ``philox``.

Bits. All float arithmetic is elementwise IEEE arithmetic in the order written, never fused into multiply-adds, with
correctly rounded division and square root and no library function, and its sums have an order: every implementation
can and must give the same bits, which depend on nothing but the sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import philox

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def pgd_step_linf(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    low: float,
    high: float,
    targeted: bool,
) -> Tensor:
    """project(x_adv ± step_size · sign(grad)); where the gradient is 0 or NaN the element does not move."""
    ascent = step_size * torch.sign(_wide(grad))
    moved = _wide(x_adv) - ascent if targeted else _wide(x_adv) + ascent
    return project_linf(moved, x, eps, low, high)


def pgd_step_l2(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    low: float,
    high: float,
    targeted: bool,
) -> Tensor:
    """project(x_adv ± step_size · grad / ‖grad‖₂); a sample whose gradient is 0 or not finite does not move."""
    ascent = _ascent(grad.double(), step_size)
    moved = x_adv.double() - ascent if targeted else x_adv.double() + ascent
    return project_l2(moved, x, eps, low, high)


def project_linf(x_adv: Tensor, x: Tensor, eps: float | Tensor, low: float, high: float) -> Tensor:
    """The nearest point with x - eps ≤ x_adv ≤ x + eps and low ≤ x_adv ≤ high."""
    centre = _wide(x)
    nearest = torch.minimum(torch.maximum(_wide(x_adv), centre - eps), centre + eps)
    return _round_towards(x, nearest.clamp(low, high))


def project_l2(x_adv: Tensor, x: Tensor, eps: float | Tensor, low: float, high: float) -> Tensor:
    """x_adv pulled straight towards x onto ‖x_adv - x‖₂ ≤ eps, then clamped to the bounds."""
    centre, moved = x.double(), x_adv.double()
    delta = moved - centre
    norm = _norm(delta)
    nearest = torch.where(norm <= eps, moved, centre + delta * _divide(eps, norm))
    return _round_towards(x, nearest.clamp(low, high))


def random_start_linf(
    x: Tensor, eps: float | Tensor, seed: int, sample_ids: Tensor | None, step: int, low: float, high: float
) -> Tensor:
    """project(x + (2u - 1) · eps), u = (word >> 8) · 2⁻²⁴ of the element's own draw; 2u - 1 is exact."""
    centre = _wide(x)
    u = philox.uniform(seed, _ids(x, sample_ids), x[0].numel(), step=step).reshape(x.shape).to(centre.dtype)
    delta = (2.0 * u - 1.0) * eps
    return project_linf(centre + delta, x, eps, low, high)


def random_start_l2(
    x: Tensor, eps: float | Tensor, seed: int, sample_ids: Tensor | None, step: int, low: float, high: float
) -> Tensor:
    """Uniform in the l2 ball, then clamped to the bounds: x + eps · (z_e / √(Σ_{j<d+2} z_j²)) for the d elements e.

    The first d of d + 2 coordinates of a uniform point of the unit sphere are a uniform point of the d-ball, so
    no radius has to be drawn. z are Gaussian integers (``gaussian``), hence the sum is exact in any order.
    """
    size = x[0].numel()
    z = gaussian(seed, _ids(x, sample_ids), size + 2, step=step)
    length = _sqrt((z * z).sum(1, keepdim=True).clamp_min(1).double())
    delta = eps * (z[:, :size].double() / length).reshape(x.shape)
    return _round_towards(x, (x.double() + delta).clamp(low, high))


def gaussian(key: int, sample_ids: Tensor, count: int, *, step: int) -> Tensor:
    """Standard normal numbers in units of 2⁻¹⁶, int64 [B, count]: ⌊z · 2¹⁶ + ½⌋ with z by Box-Muller in float64.

    z_{2k} = r cos φ and z_{2k+1} = r sin φ from draws 2k (r = √(-2 ln((w + 1) · 2⁻³²))) and 2k + 1 (φ = 2π · w · 2⁻³²).
    Logarithm, cosine and sine are the short series below and not the library's, whose last bits differ by machine.
    """
    pairs = (count + 1) // 2
    words = philox.random_words(key, sample_ids, 2 * pairs, step=step).reshape(-1, pairs, 2)
    radius = _sqrt(-2.0 * _log_fraction(words[..., 0] + 1))
    cos, sin = _cos_sin(words[..., 1])
    z = torch.stack((radius * cos, radius * sin), dim=-1).flatten(1)[:, :count]
    return torch.floor(z * 65536.0 + 0.5).to(torch.int64)


def _log_fraction(n: Tensor) -> Tensor:
    """ln(n · 2⁻³²) for integers n in [1, 2³²], to 1e-11, by ln m = 2 artanh((m - 1)/(m + 1)), m in [√½, √2)."""
    mantissa, exponent = torch.frexp(n.double())
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = torch.where(small, 2.0 * mantissa, mantissa), exponent - small.to(exponent.dtype)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _horner([1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0], s * s)
    return (exponent - 32).double() * math.log(2.0) + 2.0 * s * series


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π · word · 2⁻³², to 1e-9: the top two bits are the quadrant, the rest goes into Taylor series."""
    quadrant, angle = word >> 30, (word & 0x3FFFFFFF).double() * (math.pi / 2 * 2.0**-30)
    square = angle * angle
    cos = _horner([(-1) ** k / math.factorial(2 * k) for k in range(7, -1, -1)], square)
    sin = angle * _horner([(-1) ** k / math.factorial(2 * k + 1) for k in range(6, -1, -1)], square)
    odd = (quadrant & 1).bool()
    cos, sin = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    flip = quadrant >= 2
    return torch.where(flip, -cos, cos), torch.where(flip, -sin, sin)


def _horner(coefficients: list[float], x: Tensor) -> Tensor:
    """The polynomial with these coefficients, highest power first: one multiplication and one addition each."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _round_towards(x: Tensor, value: Tensor) -> Tensor:
    """``value`` in the dtype of x: of the two neighbours, the one on the side of x."""
    if value.dtype == x.dtype:
        return value
    nearest = value.to(x.dtype)
    above = value > x
    overshoot = torch.where(above, nearest > value, nearest < value)
    bits = nearest.view(_BITS[x.dtype])
    # Floats are sign and magnitude: the magnitude grows by one where x lies further from zero than value does.
    grow = above == (bits < 0)
    return torch.where(overshoot, bits + torch.where(grow, 1, -1).to(bits.dtype), bits).view(x.dtype)


def _ascent(grad: Tensor, step_size: float | Tensor) -> Tensor:
    """step_size · grad / ‖grad‖₂ per sample, 0 for a sample whose gradient is 0 or not finite.

    A power of two brings the gradient near 1 first, so no square over- or underflows; it changes no other bit, and
    an implementation may leave it out where the squares are safe without it.
    """
    largest = _per_sample(grad.reshape(len(grad), -1).abs().amax(1), grad)
    scaled = grad / (largest / (2.0 * torch.frexp(largest).mantissa))
    moves = (largest > 0) & torch.isfinite(largest)
    return torch.where(moves, scaled * _divide(step_size, _norm(scaled)), 0.0)


def _norm(delta: Tensor) -> Tensor:
    """‖delta‖₂ per sample, [B, 1, …]."""
    return _per_sample(_sqrt(_sum(delta.reshape(len(delta), -1).square())), delta)


def _divide(number: float | Tensor, by: Tensor) -> Tensor:
    """number / by; torch multiplies a float by the reciprocal instead, which rounds twice."""
    return torch.as_tensor(number, dtype=by.dtype) / by


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded root of float64 x ≥ 0 (above 1e-290): MKL's, which torch takes on the CPU, is off by a bit.

    One Newton step with an exact remainder: ``r * r`` is ``square + rest`` (Dekker, 1971), and x - square is exact.
    """
    root = torch.sqrt(x)
    if x.device.type != "cpu":
        return root
    high = root * 134217729.0
    high = high - (high - root)
    low = root - high
    square = root * root
    rest = ((high * high - square) + 2.0 * high * low) + low * low
    better = root + ((x - square) - rest) / (2.0 * root)
    return torch.where(torch.isfinite(better), better, root)


def _sum(terms: Tensor) -> Tensor:
    """Sums over dim 1 in one fixed order, [B, n] to [B].

    Zeros fill up the last of the blocks of 128 terms, each block is folded onto its first half until one number is
    left, and so are the blocks' numbers. (A library's order depends on the machine, the threads and the batch.)
    """
    while True:
        blocks = -(-terms.shape[1] // 128)
        terms = pad(terms, (0, 128 * blocks - terms.shape[1])).reshape(len(terms), blocks, 128)
        for half in (64, 32, 16, 8, 4, 2, 1):
            terms = terms[..., :half] + terms[..., half:]
        terms = terms[..., 0]
        if blocks == 1:
            return terms[:, 0]


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 1))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _ids(x: Tensor, sample_ids: Tensor | None) -> Tensor:
    return torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
