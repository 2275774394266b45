"""Rows of all processes, for losses whose candidates come from all of them."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def position() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without ``torch.distributed``."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather_rows(x: Tensor, *, grad: bool) -> Tensor:
    """The rows [B, d] of all processes in the order of ranks, [processes * B, d].

    ``grad``: every process's loss sends gradients to every process's rows, which receive their sum; else constants.
    """
    if grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(x)))
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)
