"""Similarity in C++ (csrc/cpu/similarity*.cpp): same signatures and meaning as ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._rows import working_dtype

_library.define(
    "similarity_topk_native_(Tensor queries, Tensor bank, int k, bool normalize, "
    "Tensor(a!) values, Tensor(b!) indices) -> ()"
)


def topk(queries: Tensor, bank: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """The k largest dots of each query, descending, and where in the bank they are; of equal ones the first."""
    shape = (queries.shape[0], k)
    values = queries.new_empty(shape, dtype=working_dtype(queries.dtype))
    indices = queries.new_empty(shape, dtype=torch.int64)
    torch.ops.clead.similarity_topk_native_.default(queries, bank, k, normalize, values, indices)
    return values.to(queries.dtype), indices
