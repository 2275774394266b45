"""Augmentation on Triton: same meaning as ``reference``, for steps with one geometry and colours on one side of it.

One launch for the pixels, and one before it for the mean luma that the jitter's contrast moves away from. Bound by
memory: images are read from it about once, from the cache thereafter, and written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._triton_rows import Config, on_device
from .steps import GEOMETRY, NAMES, STEPS
from .triton_kernels import augment_kernel, mean_kernel

SHAPE = Config(1, 1024, 1, 8, 1)
"""One image and 1,024 pixels of it to a program."""


def augment(
    images: Tensor, parameters: Tensor, steps: Sequence[int], max_value: float, clip: bool, dtype: torch.dtype
) -> Tensor:
    """``steps`` with the rows of ``parameters``; see ``reference``."""
    columns, (batch, channels, height, width) = parameters.shape[1], images.shape
    out = images.new_empty((columns, channels, height, width), dtype=dtype)
    if out.numel() == 0:
        return out
    images, plan = images.contiguous(), constants(steps)
    parameters = _with_cosines(parameters, plan["PLACE"]) if plan["GEOMETRY"] == "affine" else parameters.contiguous()
    planes = 3 if plan["JITTER"] >= 0 or plan["GRAYSCALE"] >= 0 else 1
    with on_device(images):
        means = images.new_empty(columns if plan["JITTER"] >= 0 else 0, dtype=torch.float32)
        if plan["JITTER"] >= 0:
            of_mean = {name: plan[name] for name in plan if name not in ("FLIP", "GRAYSCALE")}
            mean_kernel[(columns,)](
                images, parameters, means, columns, batch, height, width, max_value,
                **of_mean, BLOCK=SHAPE.block_n, num_warps=SHAPE.warps,
            )  # fmt: skip
        blocks = -(-height * width // SHAPE.block_n)
        augment_kernel[(columns * (channels // planes), blocks)](
            images, parameters, means, out, columns, batch, channels, height, width, max_value,
            **plan, PLANES=planes, CLIP=clip, BLOCK=SHAPE.block_n, num_warps=SHAPE.warps,
        )  # fmt: skip
    return out


def _with_cosines(parameters: Tensor, place: int) -> Tensor:
    """cos / scale and sin / scale for the degrees and the scale: in float64 they would take memory in the kernel."""
    changed = parameters.clone(memory_format=torch.contiguous_format)
    angle, scale = torch.deg2rad(parameters[place + 2]), parameters[place + 3]
    changed[place + 2], changed[place + 3] = torch.cos(angle) / scale, torch.sin(angle) / scale
    return changed


def constants(steps: Sequence[int]) -> dict[str, Any]:
    """What the kernels are compiled for: the geometry's name, and for all else where its parameters start, or -1."""
    names = [NAMES[step] for step in steps]
    geometry = next((name for name in names if name in GEOMETRY), "none")
    turn = names.index(geometry) if geometry in names else -1
    plan: dict[str, Any] = {"GEOMETRY": geometry, "PLACE": -1, "FLIP_FIRST": -1, "FLIP": -1}
    plan |= {"BRIGHTNESS": -1, "JITTER": -1, "GRAYSCALE": -1, "COLORS_FIRST": False}
    row = 0
    for place, name in enumerate(names):
        if name in GEOMETRY:
            plan["PLACE"] = row
        elif name == "flip":
            plan["FLIP_FIRST" if place < turn else "FLIP"] = row
        else:
            plan[name.upper()] = row
            plan["COLORS_FIRST"] = place < turn
        row += len(STEPS[name])
    return plan
