"""The chips that predictions are made for: their rates, and how many blocks of a compiled kernel a processor holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A chip's rates per second. H200: copy and half products as measured elsewhere; L2 of both is an estimate.

    ``narrow``: part of the products' rate that tiles of fewer than ``WIDE`` rows reach, which cannot be wgmma's.
    """

    name: str
    capability: int
    processors: int
    clock: float
    products: dict[str, float]
    copy: float
    l2: float
    shared: int
    narrow: float = 1.0


WIDE = 64
CHIPS = (
    Chip(
        "H200",
        90,
        132,
        1.755e9,
        {"bf16": 790e12, "fp16": 790e12, "tf32": 395e12, "fp32": 67e12},
        4.3e12,
        5.5e12,
        228,
        0.63,
    ),
    Chip(
        "A100", 80, 108, 1.41e9, {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 2.04e12, 4e12, 164
    ),
)


def resident(row: dict[str, str], chip: Chip) -> int:
    """Blocks that a processor holds at once."""
    warps, registers, shared = int(row["warps"]), int(row["registers"]), int(row["shared"])
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)  # given to warps in steps of 256
    by_shared = chip.shared * 1024 // (shared + 1024)  # of which the system takes one KB
    return max(1, min(by_registers, by_shared, 64 // warps, 32))
