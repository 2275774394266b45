"""Similarity on Triton: same meaning as ``reference``. Rows are normalised in the products, never copied.

``similarity_topk`` never holds an [M, N] matrix: programs keep the best k of their queries while they run over a share
of the bank, as keys that order by score and then by index. All keys differ, so the result depends on no order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._shares import occupies, processors, share_out
from .._triton_rows import MAX_WIDTH, Config, inverse_norms, on_device, padded_width, precision
from .triton_configs import BACKWARD, FORWARD, MAX_K, MERGE, TOPK, TOPK_MANY, held
from .triton_kernels import similarity_backward_kernel, similarity_kernel, topk_kernel, topk_merge_kernel


def forward(a: Tensor, b: Tensor, temperature: Tensor | float, normalize: bool) -> Tensor:
    """``<a_i, b_j> / temperature`` [..., M, N], rounded once to the dtype of ``a``."""
    _check_width(a)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = a.new_empty(*batch, a.shape[-2], b.shape[-2])
    if out.numel() == 0 or a.shape[-1] == 0:
        return out.zero_()
    with on_device(a):
        one, other = _Side(a, batch, normalize), _Side(b, batch, normalize)
        shape = FORWARD[_short(a.dtype)]
        tiles = -(-one.count // shape.block_m) * -(-other.count // shape.block_n)
        similarity_kernel[(one.batches * tiles,)](
            one.rows, other.rows, one.norms, other.norms, _temperature(temperature, a), out, one.count, other.count,
            one.step, other.step, a.shape[-1], b.shape[-1],
            D=a.shape[-1], ON_DEVICE=isinstance(temperature, Tensor), PRECISION=precision(a.dtype),
            **_launch(shape), BLOCK_K=min(shape.block_k, padded_width(a.shape[-1])),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, a: Tensor, b: Tensor, temperature: Tensor | float, normalize: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. a, b and temperature (float32); empty where ``needs`` says no."""
    _check_width(a)
    if a.numel() == 0 or b.numel() == 0:
        return torch.zeros_like(a), torch.zeros_like(b), grad.new_zeros((), dtype=torch.float32)
    batch = tuple(grad.shape[:-2])
    flat = grad.reshape(math.prod(batch), *grad.shape[-2:])
    grad_a, grad_b, grad_temperature = (grad.new_empty(0, dtype=torch.float32) for _ in range(3))
    with on_device(a):
        one, other = _Side(a, batch, normalize), _Side(b, batch, normalize)
        scale = _temperature(temperature, a)
        radials = None
        if needs[1]:
            grad_b, radials = _gradient(b, other, one, flat.mT, scale, batch)
        if needs[0] or (needs[2] and radials is None):
            of_a, radials = _gradient(a, one, other, flat, scale, batch)
            grad_a = of_a if needs[0] else grad_a
        if needs[2] and radials is not None:
            total = radials.sum()
            grad_temperature = -total / scale.float() if isinstance(scale, Tensor) else -total * scale
    return grad_a, grad_b, grad_temperature


def topk(queries: Tensor, bank: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """The k largest dots of each query, descending, and where in the bank they are; of equal ones the first."""
    _check_width(queries)
    if k > MAX_K:
        raise NotImplementedError(f"the Triton kernels search for up to {MAX_K} rows, got k = {k}")
    rows, columns = queries.shape[0], bank.shape[0]
    values = queries.new_empty(rows, k)
    indices = queries.new_empty(rows, k, dtype=torch.int64)
    if rows == 0:
        return values, indices
    if queries.shape[1] == 0:
        return values.zero_(), torch.arange(k, device=queries.device).repeat(rows, 1)
    with on_device(queries):
        one, other = _Side(queries, (), normalize), _Side(bank, (), normalize)
        count, dtype = held(k), _short(queries.dtype)
        many = TOPK_MANY.get((count, dtype))
        large = many and occupies(rows, columns, many.block_m, many.block_n, processors(queries.device))
        shape = many if many and large else TOPK[count, dtype]
        blocks = -(-rows // shape.block_m)
        length, shares = share_out(
            rows, columns, shape.block_m, shape.block_n, shape.warps, processors(queries.device), least=2
        )
        keys = queries.new_empty((shares, rows, count), dtype=torch.int64)
        topk_kernel[(blocks, shares)](
            one.rows, other.rows, one.norms, other.norms, keys, rows, columns, length, queries.shape[1],
            bank.shape[1], D=queries.shape[1], K=count, PRECISION=precision(queries.dtype),
            **_launch(shape), BLOCK_K=min(shape.block_k, padded_width(queries.shape[1])),
        )  # fmt: skip
        topk_merge_kernel[(-(-rows // MERGE.block_m),)](
            keys, values, indices, rows, k, shares, K=count, BLOCK_M=MERGE.block_m, num_warps=MERGE.warps
        )
    return values, indices


class _Side:
    """One argument as the kernels take it: contiguous rows, their inverse norms, and the rows from batch to batch."""

    def __init__(self, x: Tensor, batch: tuple[int, ...], normalize: bool) -> None:
        self.count, width = x.shape[-2:]
        self.batches = math.prod(batch)
        alone = math.prod(x.shape[:-2]) == 1
        self.rows = x.contiguous() if alone else x.expand(*batch, *x.shape[-2:]).contiguous()
        self.step = 0 if alone else self.count
        self.norms = inverse_norms(self.rows.view(self.rows.numel() // width, width)) if normalize else None


def _gradient(
    x: Tensor, own: _Side, other: _Side, grad: Tensor, scale: Tensor | float, batch: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The gradient w.r.t. ``x``, and per row of it the sum over j of grad_ij s_ij."""
    width = x.shape[-1]
    summed = math.prod(x.shape[:-2]) != own.batches
    out = x.new_empty((*batch, own.count, width), dtype=torch.float32 if summed else x.dtype)
    radials = x.new_empty((own.batches, own.count), dtype=torch.float32)
    shape = BACKWARD[max(padded_width(width), 64), _short(x.dtype)]
    if out.numel():
        similarity_backward_kernel[(own.batches * -(-own.count // shape.block_m),)](
            own.rows, other.rows, own.norms, other.norms, scale, grad, out, radials, own.count, other.count,
            own.step, other.step, width, width, *grad.stride(),
            D=width, BLOCK_D=padded_width(width), ON_DEVICE=isinstance(scale, Tensor), PRECISION=precision(x.dtype),
            **_launch(shape),
        )  # fmt: skip
    return (out.sum_to_size(x.shape).to(x.dtype) if summed else out.view(x.shape)), radials


def _launch(shape: Config) -> dict[str, int]:
    return {"BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n, "num_warps": shape.warps, "num_stages": shape.stages}


def _temperature(temperature: Tensor | float, a: Tensor) -> Tensor | float:
    """What the kernels take: a pointer, or the reciprocal of a number."""
    if not isinstance(temperature, Tensor):
        return 1.0 / temperature
    if a.is_cuda and not temperature.is_cuda:
        return temperature.detach().to(a.device, torch.float32)
    return temperature.detach()


def _check_width(x: Tensor) -> None:
    if x.shape[-1] > MAX_WIDTH:
        raise NotImplementedError(f"the Triton kernels take rows of up to {MAX_WIDTH} values, got {x.shape[-1]}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
