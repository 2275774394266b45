"""``torch.ops.clead.augment``: schema, kernel, fake. The op carries no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import native, reference


def _triton(*arguments: Any) -> Tensor:
    from . import triton  # not at the top: Triton need not be installed

    return triton.augment(*arguments)


_AUGMENT: dict[str, Callable[..., Tensor]] = {"reference": reference.augment, "native": native.augment}


def _augment(
    images: Tensor, parameters: Tensor, steps: list[int], max_value: float, clip: bool, dtype: torch.dtype, impl: str
) -> Tensor:
    if impl == "triton":
        return _triton(images, parameters, steps, max_value, clip, dtype)
    if images.dtype in (torch.bfloat16, torch.float16):
        images = images.to(torch.float32)
    return _AUGMENT[impl](images, parameters, steps, max_value, clip).to(dtype)


def _fake(
    images: Tensor, parameters: Tensor, steps: list[int], max_value: float, clip: bool, dtype: torch.dtype, impl: str
) -> Tensor:
    return images.new_empty((parameters.shape[1], *images.shape[1:]), dtype=dtype)


augment_op = _library.define_functional(
    "augment(Tensor images, Tensor parameters, int[] steps, float max_value, bool clip, ScalarType dtype, str impl) "
    "-> Tensor",
    _augment,
    _fake,
)
