"""Tile shapes of the contrastive Triton kernels: a table, because tuning at run time costs launches and determinism.

Every row is compiled for compute capabilities 8.0 and 9.0 by ``tests/kernels/test_triton_compile.py``, which fails on a
spilled register and beyond the shared memory of a block.
"""

from __future__ import annotations

import functools

import torch

from .._shares import occupies, processors
from .._triton_rows import Config, padded_width

# (kernel, masks, padded width, dtype): for little work, and where there is enough of it for every processor even in
# large tiles. "rules" stands for
# rules on false negatives and for an offset per row: both cost registers. float32 products run without tensor cores;
# kept whole, their rows would not fit the registers.
TABLE: dict[tuple[str, str, int, str], tuple[Config, Config]] = {
    ("forward", "plain", 64, "bfloat16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("forward", "rules", 64, "bfloat16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("forward", "plain", 128, "bfloat16"): (Config(32, 64, 128, 4, 2), Config(128, 32, 128, 8, 2)),
    ("forward", "rules", 128, "bfloat16"): (Config(32, 64, 128, 4, 2), Config(128, 32, 128, 8, 2)),
    ("forward", "plain", 256, "bfloat16"): (Config(32, 64, 256, 4, 2), Config(128, 32, 256, 8, 2)),
    ("forward", "rules", 256, "bfloat16"): (Config(32, 64, 256, 4, 2), Config(128, 32, 256, 8, 2)),
    ("forward", "plain", 512, "bfloat16"): (Config(32, 64, 512, 4, 2), Config(64, 32, 512, 4, 2)),
    ("forward", "rules", 512, "bfloat16"): (Config(32, 32, 512, 4, 2), Config(64, 32, 512, 8, 2)),
    ("backward", "plain", 64, "bfloat16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("backward", "rules", 64, "bfloat16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("backward", "plain", 128, "bfloat16"): (Config(32, 64, 128, 4, 2), Config(128, 32, 128, 8, 2)),
    ("backward", "rules", 128, "bfloat16"): (Config(32, 32, 128, 4, 2), Config(128, 32, 128, 8, 2)),
    ("backward", "plain", 256, "bfloat16"): (Config(32, 32, 256, 4, 2), Config(64, 32, 256, 8, 2)),
    ("backward", "rules", 256, "bfloat16"): (Config(32, 32, 256, 4, 2), Config(32, 32, 256, 4, 2)),
    ("backward", "plain", 512, "bfloat16"): (Config(32, 32, 512, 8, 2), Config(32, 32, 512, 8, 2)),
    ("backward", "rules", 512, "bfloat16"): (Config(32, 32, 512, 8, 2), Config(32, 32, 512, 8, 2)),
    ("forward", "plain", 64, "float16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("forward", "rules", 64, "float16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("forward", "plain", 128, "float16"): (Config(32, 64, 128, 4, 2), Config(128, 32, 128, 8, 2)),
    ("forward", "rules", 128, "float16"): (Config(32, 64, 128, 4, 2), Config(128, 32, 128, 8, 2)),
    ("forward", "plain", 256, "float16"): (Config(32, 64, 256, 4, 2), Config(128, 32, 256, 8, 2)),
    ("forward", "rules", 256, "float16"): (Config(32, 64, 256, 4, 2), Config(128, 32, 256, 8, 2)),
    ("forward", "plain", 512, "float16"): (Config(32, 64, 512, 4, 2), Config(64, 32, 512, 4, 2)),
    ("forward", "rules", 512, "float16"): (Config(32, 32, 512, 4, 2), Config(64, 32, 512, 8, 2)),
    ("backward", "plain", 64, "float16"): (Config(32, 64, 64, 4, 2), Config(128, 32, 64, 8, 2)),
    ("backward", "rules", 64, "float16"): (Config(32, 32, 64, 8, 2), Config(128, 32, 64, 8, 2)),
    ("backward", "plain", 128, "float16"): (Config(32, 32, 128, 4, 2), Config(64, 64, 128, 8, 2)),
    ("backward", "rules", 128, "float16"): (Config(32, 32, 128, 4, 2), Config(64, 32, 128, 8, 2)),
    ("backward", "plain", 256, "float16"): (Config(32, 32, 256, 4, 2), Config(32, 32, 256, 4, 2)),
    ("backward", "rules", 256, "float16"): (Config(32, 32, 256, 8, 2), Config(32, 32, 256, 8, 2)),
    ("backward", "plain", 512, "float16"): (Config(32, 32, 512, 8, 2), Config(32, 32, 512, 8, 2)),
    ("backward", "rules", 512, "float16"): (Config(16, 32, 512, 8, 2), Config(16, 32, 512, 8, 2)),
    ("forward", "plain", 64, "float32"): (Config(32, 32, 16, 4, 2), Config(64, 64, 16, 8, 2)),
    ("forward", "rules", 64, "float32"): (Config(16, 32, 16, 4, 2), Config(64, 32, 16, 8, 2)),
    ("forward", "plain", 128, "float32"): (Config(32, 32, 16, 4, 2), Config(64, 64, 16, 8, 2)),
    ("forward", "rules", 128, "float32"): (Config(16, 32, 16, 4, 2), Config(64, 32, 16, 8, 2)),
    ("forward", "plain", 256, "float32"): (Config(32, 32, 16, 4, 2), Config(64, 64, 16, 8, 2)),
    ("forward", "rules", 256, "float32"): (Config(16, 32, 16, 4, 2), Config(64, 32, 16, 8, 2)),
    ("forward", "plain", 512, "float32"): (Config(32, 32, 16, 4, 2), Config(64, 64, 16, 8, 2)),
    ("forward", "rules", 512, "float32"): (Config(16, 32, 16, 4, 2), Config(64, 32, 16, 8, 2)),
    ("backward", "plain", 64, "float32"): (Config(32, 16, 16, 4, 2), Config(32, 32, 16, 8, 2)),
    ("backward", "rules", 64, "float32"): (Config(32, 16, 16, 8, 2), Config(64, 16, 16, 8, 2)),
    ("backward", "plain", 128, "float32"): (Config(32, 16, 16, 4, 2), Config(64, 16, 16, 8, 2)),
    ("backward", "rules", 128, "float32"): (Config(32, 16, 16, 4, 2), Config(32, 32, 16, 8, 2)),
    ("backward", "plain", 256, "float32"): (Config(32, 16, 16, 4, 2), Config(64, 16, 16, 8, 2)),
    ("backward", "rules", 256, "float32"): (Config(32, 16, 16, 4, 2), Config(64, 16, 16, 8, 2)),
    ("backward", "plain", 512, "float32"): (Config(32, 16, 16, 8, 2), Config(32, 16, 16, 8, 2)),
    ("backward", "rules", 512, "float32"): (Config(32, 16, 16, 8, 2), Config(32, 16, 16, 8, 2)),
}

# (kernel, padded width, dtype): where a form beyond the plain one, with rules, does not fit the registers of "rules".
FORMS: dict[tuple[str, int, str], Config] = {
    **{
        ("forward", width, dtype): Config(32, 64, width, 4, 2)
        for dtype in ("bfloat16", "float16")
        for width in (64, 128, 256)
    },
    ("backward", 64, "bfloat16"): Config(32, 64, 64, 4, 2),
    ("backward", 128, "bfloat16"): Config(32, 32, 128, 4, 2),
    ("backward", 128, "float16"): Config(32, 32, 128, 4, 2),
    ("backward", 256, "bfloat16"): Config(32, 32, 256, 8, 2),
    ("backward", 512, "bfloat16"): Config(16, 16, 512, 8, 2),
    ("backward", 512, "float16"): Config(16, 16, 512, 8, 2),
}

# (padded width, dtype): of the second pass that some forms need; it holds more sums of a row than the first.
SECOND: dict[tuple[int, str], Config] = {
    **{(width, dtype): Config(64, 32, width, 8, 2) for dtype in ("bfloat16", "float16") for width in (64, 128, 256)},
    **{(512, dtype): Config(32, 32, 512, 4, 2) for dtype in ("bfloat16", "float16")},
    **{(width, "float32"): Config(64, 32, 16, 8, 2) for width in (64, 256, 512)},
    (128, "float32"): Config(32, 32, 16, 8, 2),
}

MAX_TOPK = 255
"""Largest k of the top-k rule: a program holds one more of each of its rows in registers."""

# Of the search for cuts: (most cosines held of a row, dtype); a tile has at least as many, so that it can replace them.
SEARCH: dict[tuple[int, str], Config] = {
    (16, "bfloat16"): Config(16, 64, 64, 4, 2),
    (64, "bfloat16"): Config(16, 64, 64, 4, 2),
    (256, "bfloat16"): Config(16, 256, 64, 8, 2),
    (16, "float16"): Config(16, 64, 64, 4, 2),
    (64, "float16"): Config(16, 64, 64, 4, 2),
    (256, "float16"): Config(16, 256, 64, 8, 2),
    (16, "float32"): Config(16, 64, 16, 4, 2),
    (64, "float32"): Config(16, 64, 16, 4, 2),
    (256, "float32"): Config(16, 256, 16, 8, 1),
}

# Where there is enough work for every processor in larger tiles, which read the candidates less often.
SEARCH_MANY: dict[tuple[int, str], Config] = {
    **{(held, dtype): Config(128, 64, 64, 8, 2) for held in (16, 64) for dtype in ("bfloat16", "float16")},
    **{(256, dtype): Config(32, 256, 64, 8, 2) for dtype in ("bfloat16", "float16")},
    **{(held, "float32"): Config(64, 64, 16, 8, 2) for held in (16, 64)},
}

# Of the search for the most similar candidate.
HARDEST: dict[str, Config] = {
    "bfloat16": Config(32, 128, 64, 4, 3),
    "float16": Config(32, 128, 64, 4, 3),
    "float32": Config(32, 64, 16, 4, 2),
}


def config(
    kernel: str, masks: str, width: int, dtype: torch.dtype, rows: int, columns: int, device: torch.device
) -> Config:
    """The tile shape for ``rows`` owned rows of ``width`` dimensions that meet ``columns``; others as the table's keys.

    ``masks`` is "forms" for a form beyond the plain one.
    """
    key = max(padded_width(width), 64), str(dtype).removeprefix("torch.")
    if masks == "forms" and (kernel, *key) in FORMS:
        return FORMS[kernel, *key]
    small, large = TABLE[kernel, "rules" if masks == "forms" else masks, *key]
    fits = occupies(rows, columns, large.block_m, large.block_n, processors(device)) and _roomy(device)
    return large if fits else small


@functools.cache
def _roomy(device: torch.device) -> bool:
    """Whether a block may have 163 KB of shared memory; the small tiles are content with the 99 KB of other chips."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) in (
        (8, 0),
        (8, 7),
        (9, 0),
        (10, 0),
        (10, 3),
    )
