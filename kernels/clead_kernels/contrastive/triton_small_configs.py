"""Tile shapes of ``triton_small``; every row is compiled as those of ``triton_configs`` are."""

from __future__ import annotations

import torch

from .._triton_rows import Config, padded_width

FEW_ROWS = 2048
"""Up to so many anchors a program takes few of them, so that there is one for most processors."""

# (kernel, masks, padded width, dtype): up to FEW_ROWS anchors, more of them; keys as in ``triton_configs``.
TABLE: dict[tuple[str, str, int, str], tuple[Config, Config]] = {
    ("forward", "plain", 64, "bfloat16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("forward", "rules", 64, "bfloat16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("forward", "plain", 128, "bfloat16"): (Config(16, 128, 128, 8, 3), Config(32, 64, 128, 8, 3)),
    ("forward", "rules", 128, "bfloat16"): (Config(16, 128, 128, 8, 3), Config(32, 64, 128, 8, 3)),
    ("forward", "plain", 256, "bfloat16"): (Config(16, 64, 256, 8, 3), Config(32, 64, 256, 8, 2)),
    ("forward", "rules", 256, "bfloat16"): (Config(16, 64, 256, 8, 3), Config(32, 64, 256, 8, 2)),
    ("backward", "plain", 64, "bfloat16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("backward", "rules", 64, "bfloat16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("backward", "plain", 128, "bfloat16"): (Config(16, 128, 128, 8, 3), Config(32, 64, 128, 8, 3)),
    ("backward", "rules", 128, "bfloat16"): (Config(16, 64, 128, 4, 3), Config(32, 64, 128, 8, 3)),
    ("backward", "plain", 256, "bfloat16"): (Config(16, 64, 256, 8, 3), Config(32, 64, 256, 8, 2)),
    ("backward", "rules", 256, "bfloat16"): (Config(16, 64, 256, 8, 2), Config(32, 64, 256, 8, 2)),
    ("forward", "plain", 64, "float16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("forward", "rules", 64, "float16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("forward", "plain", 128, "float16"): (Config(16, 128, 128, 8, 3), Config(32, 64, 128, 8, 3)),
    ("forward", "rules", 128, "float16"): (Config(16, 128, 128, 8, 3), Config(32, 64, 128, 8, 3)),
    ("forward", "plain", 256, "float16"): (Config(16, 64, 256, 8, 3), Config(32, 64, 256, 8, 2)),
    ("forward", "rules", 256, "float16"): (Config(16, 64, 256, 8, 3), Config(32, 64, 256, 8, 2)),
    ("backward", "plain", 64, "float16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("backward", "rules", 64, "float16"): (Config(16, 128, 64, 8, 3), Config(32, 64, 64, 8, 3)),
    ("backward", "plain", 128, "float16"): (Config(16, 128, 128, 8, 3), Config(32, 32, 128, 8, 2)),
    ("backward", "rules", 128, "float16"): (Config(16, 64, 128, 8, 3), Config(32, 64, 128, 8, 3)),
    ("backward", "plain", 256, "float16"): (Config(16, 32, 256, 4, 2), Config(32, 32, 256, 8, 2)),
    ("backward", "rules", 256, "float16"): (Config(16, 32, 256, 4, 2), Config(32, 32, 256, 8, 2)),
    ("forward", "plain", 64, "float32"): (Config(16, 64, 16, 8, 2), Config(32, 32, 16, 4, 2)),
    ("forward", "rules", 64, "float32"): (Config(16, 64, 16, 8, 2), Config(32, 32, 16, 4, 2)),
    ("forward", "plain", 128, "float32"): (Config(16, 64, 16, 8, 2), Config(32, 32, 16, 4, 2)),
    ("forward", "rules", 128, "float32"): (Config(16, 64, 16, 8, 2), Config(32, 32, 16, 4, 2)),
    ("forward", "plain", 256, "float32"): (Config(16, 64, 16, 8, 2), Config(32, 32, 16, 4, 2)),
    ("forward", "rules", 256, "float32"): (Config(16, 64, 16, 8, 2), Config(32, 32, 16, 4, 2)),
    ("backward", "plain", 64, "float32"): (Config(16, 32, 16, 8, 2), Config(32, 32, 16, 8, 2)),
    ("backward", "rules", 64, "float32"): (Config(16, 32, 16, 8, 2), Config(32, 16, 16, 8, 2)),
    ("backward", "plain", 128, "float32"): (Config(16, 32, 16, 8, 2), Config(32, 16, 16, 8, 2)),
    ("backward", "rules", 128, "float32"): (Config(16, 32, 16, 8, 2), Config(32, 16, 16, 8, 2)),
    ("backward", "plain", 256, "float32"): (Config(16, 32, 16, 8, 2), Config(32, 16, 16, 4, 2)),
    ("backward", "rules", 256, "float32"): (Config(16, 32, 16, 8, 2), Config(32, 16, 16, 4, 2)),
}


def config(kernel: str, masks: str, width: int, dtype: torch.dtype, few: bool) -> Config:
    """The tile shape for rows of ``width`` dimensions."""
    small, large = TABLE[kernel, masks, max(padded_width(width), 64), str(dtype).removeprefix("torch.")]
    return small if few else large
