"""Rows of all processes, for losses whose candidates come from all of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def position() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without ``torch.distributed``."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _GatherRows(torch.autograd.Function):
    """All ranks' rows; a rank's gradient is the sum of what every rank's loss sends to its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_rows(x, grad=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rank, world = position()
        if distributed.get_backend() in ("nccl", "xccl"):  # half the bytes of a sum of everything; not in gloo
            own = grad.new_empty((grad.shape[0] // world, *grad.shape[1:]))
            distributed.reduce_scatter_tensor(own, grad.contiguous())
            return own
        grad = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)
        return grad.chunk(world)[rank]


def gather_rows(x: Tensor, *, grad: bool) -> Tensor:
    """The rows [B, d] of all processes in the order of ranks, [processes * B, d].

    ``grad``: every process's loss sends gradients to every process's rows, which receive their sum; else constants.
    """
    if grad:
        return cast(Tensor, _GatherRows.apply(x))  # type: ignore[no-untyped-call]
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)
