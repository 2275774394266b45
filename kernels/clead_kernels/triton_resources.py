"""What the shipped Triton configurations cost on the chip: registers, spills, shared memory. Needs no GPU.

``python -m clead_kernels.triton_resources`` compiles all of them for compute capabilities 8.0 and 9.0 and
rewrites ``triton_resources.csv`` beside this file (minutes); give padded widths to see only those, without writing.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ._shares import MOST
from ._triton_rows import Config
from .triton_cases import KERNELS, TYPES, VARIANTS, cases

CAPABILITIES = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one block may have."""


class Resources(NamedTuple):
    """One compiled configuration. ``spills`` in bytes per thread, ``shared`` in bytes per block; ``mma``: how many."""

    kernel: str
    masks: str
    variant: str
    width: int
    dtype: str
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    capability: int
    registers: int
    spills: int
    shared: int
    mma: int


def compile_case(
    kernel: str, masks: str, variant: str, width: int, dtype: str, shape: Config, capability: int
) -> Resources:
    """Compile one configuration and read what it takes."""
    function = KERNELS[kernel]
    types, constants = _signature(function.arg_names, VARIANTS[kernel, masks, variant], width, dtype)
    blocks = {"BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n, "BLOCK_K": min(shape.block_k, width)}
    blocks |= {"BLOCK": shape.block_n, "PLANES": width}
    constants |= {name: block for name, block in blocks.items() if name in function.arg_names}
    # What 16-byte aligned tensors, and shares and rows of a multiple of 16, get at run time; else nothing is pipelined.
    aligned = [
        parameter.num
        for parameter in function.params
        if not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        and (types[parameter.name].startswith("*") or parameter.name.endswith(("_stride", "length")))
        and parameter.name not in constants
    ]
    compiled = triton.compile(
        ASTSource(function, types, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": shape.warps, "num_stages": shape.stages},
    )
    registers, spills = _usage(compiled.asm["cubin"])
    mma = len(re.findall(r"mma\.sync|wgmma\.mma_async", compiled.asm["ptx"]))
    shared = compiled.metadata.shared
    return Resources(kernel, masks, variant, width, dtype, *shape, capability, registers, spills, shared, mma)


def _signature(
    names: list[str], variant: dict[str, Any], width: int, dtype: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and constants of a kernel's arguments."""
    flags: dict[str, Any] = {
        "NORMALIZE": True,
        "UNIT": dtype == "float32",
        "BOUNDED": True,
        "ON_DEVICE": False,
        "THRESHOLD": 0,
    }
    flags |= {
        "ALL_RULES": False,
        "TREATMENT": "none",
        "LEVELS": 1,
        "EACH": False,
        "FORM": "plain",
        "D": width,
        "BLOCK_D": width,
        "SHARES": MOST,
        "PRECISION": "tf32" if dtype == "float16" else "ieee",
    } | variant
    absent = {"self_index": "self_index", "positive_index": "index", "groups": "groups", "clusters": "clusters"}
    absent |= {name: name for name in ("row_weights", "grad_candidates", "grad_temperature")}
    rows = {"anchors", "candidates", "grad_anchors", "grad_candidates", "own", "other", "out", "a", "b", "queries"}
    rows |= {"bank", "images", "grad", "values"}
    sums = {"loss", "statistics", "coefficients", "partials", "radials", "cuts", "means"}
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for name in names:
        feature = next((feature for part, feature in absent.items() if name.endswith(part)), None)
        if name.isupper():
            types[name] = "constexpr"
            if name in flags:
                constants[name] = flags[name]
        elif name.endswith("_stride") and name in flags:
            types[name], constants[name] = "constexpr", flags[name]
        elif feature is not None and not flags.get(feature):
            types[name], constants[name] = "constexpr", None
        elif name in ("row_weights", "grad_temperature", "grad_loss"):
            types[name] = "*fp32"
        elif name == "counter":
            types[name] = "*i32"
        elif (feature is not None and name not in rows) or name in ("count", "best_keys", "indices"):
            types[name] = "*i64"
        elif name in rows:
            types[name] = TYPES[dtype]
        elif name in ("sharpness", "temperature"):
            types[name] = "*fp32" if flags["ON_DEVICE"] else "fp32"
        elif name == "threshold":
            types[name] = "*fp32" if flags["THRESHOLD"] == 2 else "fp32"
        elif name == "parameters":
            types[name] = "*fp64"
        elif name in ("weight", "share", "spread", "max_value"):
            types[name] = "fp32"
        elif name.endswith("_norms") or name in sums:
            types[name] = "*fp32"
        else:
            types[name] = "i32"
    return types, constants


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory and stack) per thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def main(arguments: list[str]) -> None:
    """Compile, print, and without arguments write the table."""
    widths = {int(argument) for argument in arguments}
    table = []
    for case in cases():
        if widths and case[3] not in widths:
            continue
        for capability in CAPABILITIES:
            table.append(compile_case(*case, capability))
            flag = "  SPILLS" * (table[-1].spills > 0) + "  SHARED" * (table[-1].shared > SHARED_LIMIT[capability])
            print(*table[-1], flag, flush=True)
    if not widths:
        with (Path(__file__).parent / "triton_resources.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Resources._fields)
            writer.writerows(table)


if __name__ == "__main__":
    main(sys.argv[1:])
