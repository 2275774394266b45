"""Augmentation in C++ (csrc/cpu/augment*.cpp): same signature and meaning as ``reference``, and its bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _library

_library.define(
    "augment_native_(Tensor images, Tensor parameters, int[] steps, float max_value, bool clip, Tensor(a!) out) -> ()"
)


def augment(images: Tensor, parameters: Tensor, steps: Sequence[int], max_value: float, clip: bool) -> Tensor:
    """``steps`` with the rows of ``parameters``, on every image while it is in the cache."""
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    out = images.new_empty((parameters.shape[1], *images.shape[1:]), dtype=dtype)
    torch.ops.clead.augment_native_.default(
        images.contiguous(), parameters.contiguous(), list(steps), max_value, clip, out
    )
    return out
