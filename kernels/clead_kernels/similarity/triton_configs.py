"""Tile shapes of the similarity Triton kernels; compiled and checked like those of the contrastive family."""

from __future__ import annotations

from .._triton_rows import Config

MAX_K = 256
"""Largest k of the search: a program holds the best k of each of its queries in registers."""

# The product is bound by writing the matrix, not by its width; a gradient keeps whole rows.
FORWARD: dict[str, Config] = {
    "bfloat16": Config(128, 64, 64, 8, 3),
    "float16": Config(128, 64, 64, 8, 3),
    "float32": Config(64, 64, 16, 8, 2),
}

# (padded width, dtype); the whole rows of the other side are taken at once, whatever block_k.
BACKWARD: dict[tuple[int, str], Config] = {
    (64, "bfloat16"): Config(64, 64, 64, 4, 2),
    (128, "bfloat16"): Config(64, 64, 128, 8, 2),
    (256, "bfloat16"): Config(64, 32, 256, 8, 2),
    (512, "bfloat16"): Config(32, 32, 512, 8, 2),
    (64, "float16"): Config(64, 32, 64, 4, 2),
    (128, "float16"): Config(64, 32, 128, 8, 2),
    (256, "float16"): Config(32, 16, 256, 8, 2),
    (512, "float16"): Config(32, 16, 512, 8, 2),
    (64, "float32"): Config(32, 16, 64, 4, 2),
    (128, "float32"): Config(32, 16, 128, 4, 2),
    (256, "float32"): Config(32, 16, 256, 8, 2),
    (512, "float32"): Config(32, 16, 512, 8, 2),
}

# (largest k, dtype): a tile has at least k candidates, so that a sorted one can replace all that is held.
TOPK: dict[tuple[int, str], Config] = {
    (16, "bfloat16"): Config(16, 128, 64, 4, 3),
    (64, "bfloat16"): Config(16, 128, 64, 4, 3),
    (256, "bfloat16"): Config(16, 256, 64, 8, 2),
    (16, "float16"): Config(16, 128, 64, 4, 3),
    (64, "float16"): Config(16, 128, 64, 4, 3),
    (256, "float16"): Config(16, 256, 64, 8, 2),
    (16, "float32"): Config(16, 64, 32, 4, 2),
    (64, "float32"): Config(16, 64, 32, 4, 2),
    (256, "float32"): Config(16, 256, 16, 8, 2),
}

# Where there is enough work for every processor in larger tiles, which read the bank less often.
TOPK_MANY: dict[tuple[int, str], Config] = {
    **{(count, dtype): Config(128, 64, 64, 8, 2) for count in (16, 64) for dtype in ("bfloat16", "float16")},
    **{(count, "float32"): Config(64, 64, 16, 8, 2) for count in (16, 64)},
}

MERGE = Config(4, 1, 1, 4, 2)
"""Of the program that merges shares of the bank: only rows, warps and stages mean anything."""


def held(k: int) -> int:
    """How many candidates a program holds to find the best k: the next of 16, 64 and 256."""
    return 16 if k <= 16 else 64 if k <= 64 else MAX_K
