"""Every shipped Triton configuration, compiled for compute capabilities 8.0 and 9.0 without a GPU.

A spilled register or a tile beyond the shared memory of a block fails here, not as a slow or dead kernel elsewhere.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernels
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("Triton compiles on Linux only", allow_module_level=True)

from clead_kernels import triton_resources as resources  # noqa: E402 - imports Triton
from clead_kernels.contrastive.triton_configs import TABLE  # noqa: E402

CASES = list(resources.cases())


def name(case):
    kernel, masks, variant, width, dtype, shape = case
    return f"{kernel} {masks} {variant} {width} {dtype} {'x'.join(map(str, shape))}"


def default(case):
    """The most common width: the dearest forms of its large tiles, and the plain ones in bfloat16."""
    _, masks, variant, width, dtype, shape = case
    if case[0].startswith("small"):
        return variant == "two views" and (width, dtype, shape.block_m) == (128, "bfloat16", 16)
    if case[0].startswith("augment"):
        return case[0] == "augment" and variant == "colours first"
    if case[0] not in ("forward", "backward") or masks == "forms":
        some = ("temperature on the device", "of b", "up to k = 64", "up to k = 15", "self", "self, own inside")
        return variant in some and (width, dtype) == (128, "bfloat16")
    large = TABLE[case[0], masks, width, dtype][1]
    return width == 128 and shape == large and variant == "self" and (dtype != "float16" or masks == "rules")


@pytest.mark.parametrize("capability", resources.CAPABILITIES)
@pytest.mark.parametrize(
    "case", [case if default(case) else pytest.param(case, marks=pytest.mark.slow) for case in CASES], ids=name
)
def test_nothing_spills_and_shared_memory_suffices(case, capability):
    measured = resources.compile_case(*case, capability)
    assert measured.spills == 0, measured
    assert measured.shared <= resources.SHARED_LIMIT[capability], measured
    assert measured.registers <= 255
    # Half-precision products run on tensor cores; float32 ones must not, they would be rounded.
    assert (measured.mma > 0) == (case[4] != "float32" and case[0] != "gather"), measured


def test_small_tiles_fit_chips_with_99_kilobytes_of_shared_memory():
    for row in committed():
        small = TABLE.get((row["kernel"], row["masks"], int(row["width"]), row["dtype"]), (None,))[0]
        if small is None or small == tuple(int(row[field]) for field in small._fields):
            assert int(row["shared"]) <= 99 * 1024, row


def test_the_committed_table_has_every_configuration_and_no_other():
    keys = resources.Resources._fields[: resources.Resources._fields.index("registers")]
    found = {tuple(row[key] for key in keys) for row in committed()}
    shipped = {
        tuple(map(str, (*case[:-1], *case[-1], capability))) for case in CASES for capability in resources.CAPABILITIES
    }
    assert found == shipped
    assert all(int(row["spills"]) == 0 for row in committed())


def committed():
    with (Path(resources.__file__).parent / "triton_resources.csv").open() as file:
        return list(csv.DictReader(file))
