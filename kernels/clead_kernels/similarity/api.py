"""The front doors of similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import _trial, dispatch
from .._rows import working_rows
from . import ops


def similarity(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    normalize: bool = True,
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """Similarity of every row of ``a`` to every row of ``b``, divided by the temperature; differentiable.

    Args:
        a: [..., M, d], float64, float32, bfloat16 or float16.
        b: [..., N, d], same dtype and device; leading dimensions broadcast as in ``torch.matmul``.
        temperature: float in [1e-8, 1e18], or a 0-d tensor, which may require grad.
        normalize: cosine similarity if True (a row with a norm below 1e-12 gets no gradient), else the dot product.
        impl: which implementation, see ``explain``.

    Returns:
        [..., M, N] in the dtype of the inputs; float32 inside for half inputs, rounded once.

    Raises:
        ValueError: shapes, devices or temperature do not fit.
        TypeError: a dtype does not fit.
        NotImplementedError: ``impl`` cannot do it.
    """
    arguments.check_rows("a", a, batched=True)
    arguments.check_rows("b", b, batched=True)
    arguments.check_alike("a", a, "b", b)
    batches = (a.shape[:-2], b.shape[:-2])
    for m, n in zip(reversed(batches[0]), reversed(batches[1]), strict=False):
        if m != n and 1 not in (m, n):
            raise ValueError(
                f"a and b must have leading dimensions that broadcast, got {list(a.shape)} and {list(b.shape)}"
            )
    row = dispatch.find("similarity", impl, device=a.device, dtype=a.dtype, **_width(a))
    arguments.check_flag("normalize", normalize)
    tensor, number = arguments.split_temperature(temperature, a.device)
    chosen = row.impl
    if row.on_trial and impl == "auto":
        chosen = _tried(row, a, b, tensor, number, normalize)
    scores: Tensor = ops.forward_op(a, b, tensor, number, normalize, chosen)
    return scores


def similarity_topk(
    queries: Tensor, bank: Tensor, k: int, *, normalize: bool = True, impl: dispatch.Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """The k rows of ``bank`` most similar to each query, without holding the whole [M, N] matrix.

    The values carry no gradient; for that, gather from ``similarity``. Half inputs are ranked by their float32 values,
    which are then rounded. NaN ranks above all numbers. Equal values come by index from the native implementation, in
    any order from the reference.

    Args:
        queries: [M, d], float64, float32, bfloat16 or float16.
        bank: [N, d], same dtype and device.
        k: how many, in [1, N].
        normalize: cosine similarity if True, else the dot product.
        impl: which implementation, see ``explain``.

    Returns:
        Values [M, k], descending, in the dtype of the inputs, and indices int64 [M, k] into ``bank``.

    Raises:
        ValueError: shapes or devices do not fit, or k is outside [1, N].
        TypeError: a dtype does not fit.
        NotImplementedError: ``impl`` cannot do it.
    """
    arguments.check_rows("queries", queries)
    arguments.check_rows("bank", bank)
    arguments.check_alike("queries", queries, "bank", bank)
    arguments.check_count("k", k, 1, bank.shape[0])
    arguments.check_flag("normalize", normalize)
    features = {"k": "up to 256" if k <= 256 else "above 256", **_width(queries)}
    row = dispatch.find("similarity_topk", impl, device=queries.device, dtype=queries.dtype, **features)
    chosen = row.impl
    if row.on_trial and impl == "auto":
        chosen = _tried_topk(row, queries, bank, k, normalize)
    values, indices = ops.topk_op(queries.detach(), bank.detach(), k, normalize, chosen)
    return values, indices


def _tried(row: dispatch.Support, a: Tensor, b: Tensor, tensor: Tensor | None, number: float, normalize: bool) -> str:
    """What runs a call that ``row``, which is on trial, would run."""

    def run(impl: str, a: Tensor, b: Tensor, tensor: Tensor | None) -> Tensor:
        scores: Tensor = ops.forward_op(a, b, tensor, number, normalize, impl)
        return scores

    return _trial.choose(row.op, row.impl, (normalize, a.ndim, b.ndim, *_sizes(a, b)), run, a, b, tensor)


def _tried_topk(row: dispatch.Support, queries: Tensor, bank: Tensor, k: int, normalize: bool) -> str:
    """As ``_tried``."""

    def run(impl: str, queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """The values, and what the indices point at: equal values come in any order."""
        queries, bank = queries.detach(), bank.detach()
        values, indices = ops.topk_op(queries, bank, k, normalize, impl)
        indices = torch.where((indices >= 0) & (indices < len(bank)), indices, 0)  # wrong ones must not be followed
        rows, others = working_rows(queries, normalize), working_rows(bank, normalize)
        pointed_at = torch.stack([(rows * others[column]).sum(1) for column in indices.unbind(1)], 1)
        return values, pointed_at.to(values.dtype)

    return _trial.choose(row.op, row.impl, (normalize, k <= 16, k <= 64, *_sizes(queries, bank)), run, queries, bank)


def _sizes(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    return _trial.size(a.shape[-2]), _trial.size(b.shape[-2]), _trial.width(a.shape[-1])


def _width(x: Tensor) -> dict[str, str]:
    return {"width": "up to 512" if x.shape[-1] <= 512 else "above 512"}
