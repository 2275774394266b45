"""Times of the GPU kernels against the roofline, predicted from what they compile to. Nothing here was ever run.

``python -m bench predict`` writes ``bench/results/predicted.csv``: for every case of the CUDA grid, every pass and two
chips, what ``triton_resources.csv`` says of the kernel (registers, spills, shared memory, so blocks a processor), and
the largest of four times:

- products: executed operations, at the chip's rate, on the processors that have a program, rounded up to whole rounds
  of programs; with fewer than eight warps a processor to hide latency, proportionally slower; on sm_90 tiles of fewer
  than 64 rows compile to mma.sync, not to wgmma, and reach 63% of the rate of halves (arXiv:2402.13499);
- exponentials: 16 a clock and processor, one for each pair;
- L2: every program reads its share of the other side, and where there are several shares (``_shares`` in the
  kernels), what comes of each is written and read once more, with one more launch;
- memory: what the case must read and write.

A launch is 2 microseconds. Issue slots, bank conflicts, latencies and the host are not in it, so real times are longer.
The line is the larger of the operations that eager's products need and the bytes that the case must move, at the
chip's rates. ``products_us`` is the time of eager's products alone, each the larger of its operations and of writing or
reading the matrix of pairs: less than what the line ``products`` will measure.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from clead_kernels._shares import LEAST, occupies, share_out

from ..cases import DTYPES, Case, Loss, Perturb, Similarity
from ..grids import grid
from ..table import milliseconds
from .chips import CHIPS, WIDE, Chip, resident

RESULTS = Path(__file__).parents[1] / "results"
LAUNCH = 2e-6
HIDING = 8
"""Warps of a processor that hide the latency of products."""
SHARED = {"forward": LEAST, "backward": LEAST, "cut": LEAST, "topk": 2}
"""Kernels whose programs may share the other side: the least tiles of a share."""
HELD = (16, 64, 256)
"""Cosines of a row that a search may hold."""


class Pass(NamedTuple):
    """One kernel of a case: its row of the resource table, and products of own x other x d with the rate of each.

    ``large``: whether it is the last row of several; None where the work decides.
    """

    kernel: str
    masks: str
    variant: str
    own: int
    other: int
    rates: tuple[str, ...]
    large: bool | None = None


def passes(case: Loss | Similarity, limits: dict[str, int]) -> tuple[list[Pass], int] | None:
    """The kernels that run a case, and how many launches there are; None where no kernel does."""
    columns = case.columns or case.rows
    first = case.dtype
    second = "tf32" if case.dtype == "fp16" else case.dtype  # gradients of halves would overflow
    if case.dim > limits["width"] or case.op == "sigmoid_loss":
        return None
    if isinstance(case, Similarity):
        return _similarity(case, first, second)
    if case.op == "instance_margin":
        return [Pass("hardest", "plain", "index", case.rows, columns, (first,))], 5
    masks = "rules" if case.rule else "plain"
    searched = case.rule == "topk"
    if max(case.rows, columns) <= limits["small rows"] and case.dim <= limits["small width"] and not searched:
        plain = "two views" if masks == "plain" else "labels"
        both = 2 if case.op == "clip_loss" else 1
        forward = Pass(
            "small_forward", masks, plain, both * case.rows, columns, (first,), case.rows > limits["few rows"]
        )
        variant = plain if case.alone else "both sets"
        own = case.rows if case.alone else case.rows + columns
        back = Pass("small_backward", masks, variant, own, columns, (first, second), case.rows > limits["few rows"])
        return [forward, back], 2
    if case.alone:
        sides = [("forward", "self", case.rows, (first,)), ("backward", "self", case.rows, (first, second))]
    else:
        sides = [("forward", "diagonal", case.rows, (first,))]
        for name, own in (("anchors", case.rows), ("candidates", columns)):
            sides.append(("backward", f"{name}, diagonal", own, (first, second)))
    found = [
        Pass(kernel, masks, variant, own, columns if own == case.rows else case.rows, rates)
        for kernel, variant, own, rates in sides
    ]
    if searched:
        return [Pass("cut", "rules", f"up to k = {_held(case) - 1}", case.rows, columns, (first,)), *found], 7
    return (found * 2, 18) if case.op == "clip_loss" else (found, 6 if case.alone else 9)


def _held(case: Loss | Similarity) -> int:
    """Cosines of a row that a search holds: of the top-k rule one more than asked for."""
    if isinstance(case, Loss) and case.rule != "topk":
        return 0
    return next(k for k in HELD if k >= (case.k if isinstance(case, Similarity) else case.topk + 1))


def _similarity(case: Similarity, first: str, second: str) -> tuple[list[Pass], int]:
    if case.k:
        return [Pass("topk", "plain", f"up to k = {_held(case)}", case.rows, case.columns, (first,))], 4
    return [
        Pass("similarity", "plain", "temperature on the device", case.rows, case.columns, (first,)),
        Pass("similarity_backward", "plain", "of a", case.rows, case.columns, (second,)),
        Pass("similarity_backward", "plain", "of b", case.columns, case.rows, (second,)),
    ], 5


def predict(resources: list[dict[str, str]], limits: dict[str, int]) -> Iterator[dict[str, Any]]:
    """One row for every pass of every case on every chip."""
    for chip in CHIPS:
        for case in grid(False, True):
            shared = {"chip": chip.name, "op": case.op, "case": case.name}
            if isinstance(case, Perturb):
                yield shared | _moved(case, chip)
                continue
            planned = passes(case, limits)
            lines = {"line_us": 1e6 * _line(case, chip), "products_us": 1e6 * _products(case, chip)}
            if planned is None:
                yield shared | {"kernel": "none: reference runs"} | lines
                continue
            found, launches = planned
            for number, one in enumerate(found):
                took = _one(one, case, chip, _row(resources, one, case, chip))
                rest = took.pop("launches") + (launches - len(found) if number == 0 else 0)
                took["predicted_us"] = 1e6 * (max(took.pop("times").values()) + LAUNCH * rest)
                yield shared | took | (lines if number == 0 else {})


def _row(resources: list[dict[str, str]], one: Pass, case: Loss | Similarity, chip: Chip) -> dict[str, str]:
    """The compiled kernel: of several tile shapes the first for few rows, the last for many."""
    width = max(64, 1 << (case.dim - 1).bit_length())
    dtype = str(DTYPES[case.dtype]).removeprefix("torch.")
    asked = (one.kernel, one.masks, one.variant, dtype, str(chip.capability))
    fields = ("kernel", "masks", "variant", "dtype", "capability")
    rows = [row for row in resources if tuple(row[field] for field in fields) == asked]
    exact = [row for row in rows if int(row["width"]) == width]
    rows = exact or rows  # some kernels are compiled at one width
    large = one.large
    if large is None:
        large = occupies(one.own, one.other, int(rows[-1]["block_m"]), int(rows[-1]["block_n"]), chip.processors)
    return rows[-1 if large else 0]


def _one(one: Pass, case: Loss | Similarity, chip: Chip, row: dict[str, str]) -> dict[str, Any]:
    blocks = resident(row, chip)
    programs, shares = ceil(one.own / int(row["block_m"])), 1
    if one.kernel == "similarity":
        programs *= ceil(one.other / int(row["block_n"]))
    elif one.kernel in SHARED:
        tile = (int(row[name]) for name in ("block_m", "block_n", "warps"))
        shares = share_out(one.own, one.other, *tile, chip.processors, SHARED[one.kernel])[1]
        programs *= shares
    rounds = ceil(programs / chip.processors)
    busy = programs / (rounds * chip.processors)
    hidden = min(1.0, min(blocks, rounds) * int(row["warps"]) / HIDING)
    pairs, size = one.own * one.other, DTYPES[case.dtype].itemsize
    part = chip.narrow if int(row["block_m"]) < WIDE and case.dtype != "fp32" else 1.0
    work = [2.0 * pairs * case.dim / (part * chip.products[rate]) for rate in one.rates]
    exps = 0 if one.kernel.startswith(("similarity", "topk", "hardest", "cut")) else pairs
    matrix = pairs * size if one.kernel.startswith("similarity") else 0
    found = 2 * case.k if isinstance(case, Similarity) else _held(case)
    left = {"forward": 8, "backward": case.dim, "topk": found, "cut": found}
    between = 2 * 4 * left[one.kernel] * one.own * shares if shares > 1 else 0
    times = {
        "products": sum(work) / busy / hidden,
        "exponentials": exps / (16 * chip.clock * chip.processors) / busy,
        "L2": (pairs / int(row["block_m"]) * case.dim * size + between) / chip.l2,
        "memory": (len(one.rates) * (one.own + one.other) * case.dim * size + matrix) / chip.copy,
    }
    slowest = max(times, key=lambda name: times[name])
    tile = "x".join(row[name] for name in ("block_m", "block_n", "block_k"))
    told = {"kernel": f"{one.kernel} {one.variant}", "tile": tile, "warps": row["warps"], "registers": row["registers"]}
    told |= {"spills": row["spills"], "shared": row["shared"], "blocks": blocks, "programs": programs}
    limit = slowest if max(times.values()) > LAUNCH else "launch"
    told |= {"executed": 2.0 * pairs * case.dim * len(one.rates), "limited_by": limit, "times": times}
    return {**told, "launches": 1 + (shares > 1 and one.kernel != "topk")}


def _line(case: Case, chip: Chip) -> float:
    """Seconds of the operations that eager's products need, or of the case's bytes."""
    return max(case.flops("full") / chip.products[case.dtype], case.bytes("full") / chip.copy)


def _products(case: Loss | Similarity, chip: Chip) -> float:
    """Seconds of eager's products alone, which hold the matrix."""
    one = 2.0 * case.pairs * case.dim
    count = case.flops("full") / one
    return count * max(one / chip.products[case.dtype], case.pairs * DTYPES[case.dtype].itemsize / chip.copy)


def _moved(case: Perturb, chip: Chip) -> dict[str, Any]:
    line = _line(case, chip)
    limit = "memory" if line > LAUNCH else "launch"
    return {"kernel": "CUDA C++", "line_us": 1e6 * line, "predicted_us": 1e6 * (line + LAUNCH), "limited_by": limit}


FIELDS = ("chip", "op", "case", "kernel", "tile", "warps", "registers", "spills", "shared", "blocks", "programs")
FIELDS += ("executed", "line_us", "products_us", "predicted_us", "limited_by")


def short(rows: list[dict[str, str]]) -> list[list[str]]:
    """A row for each case, both chips side by side; times of the passes added up."""
    head = ["case, predicted, never run", "limited by, H200"]
    head += [f"{chip.name} {what}" for chip in CHIPS for what in ("line ms", "predicted ms")]
    cells = []
    for case in dict.fromkeys(f"{row['op']}/{row['case']}" for row in rows):
        times: list[str] = []
        for chip in CHIPS:
            mine = [r for r in rows if r["chip"] == chip.name and f"{r['op']}/{r['case']}" == case]
            line = sum(float(row["line_us"] or 0) for row in mine)
            passes_us = [float(row["predicted_us"]) for row in mine if row["predicted_us"]]
            times += [milliseconds(line / 1e3), milliseconds(sum(passes_us) / 1e3) if passes_us else ""]
            if chip is CHIPS[0]:
                longest = max(mine, key=lambda row: float(row["predicted_us"] or 0))
                limit = longest["limited_by"] or longest["kernel"]
        cells.append([f"`{case}`", limit, *times])
    return [head, *cells]


def table() -> list[dict[str, Any]]:
    """What the file holds.

    Raises:
        ValueError: Triton, whose module holds the limits of its kernels, is not installed.
    """
    try:
        from clead_kernels._triton_rows import MAX_WIDTH
        from clead_kernels.contrastive import small, triton_configs, triton_small_configs
    except ImportError as error:
        raise ValueError(f"the prediction needs Triton: pip install '.[triton]' ({error})") from error
    limits = {"width": MAX_WIDTH, "small rows": small.MAX_ROWS, "small width": small.MAX_WIDTH}
    limits["few rows"] = triton_small_configs.FEW_ROWS
    with (Path(triton_configs.__file__).parents[1] / "triton_resources.csv").open(newline="") as file:
        found = list(predict(list(csv.DictReader(file)), limits))
    return [{name: _cell(row.get(name, "")) for name in FIELDS} for row in found]


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main(arguments: list[str]) -> int:
    """Write the file and print the short form."""
    from ..table import render

    if arguments:
        print("usage: python -m bench predict: writes bench/results/predicted.csv; it takes no arguments")
        return 2
    rows = table()
    with (RESULTS / "predicted.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(render(short(rows), left=2))
    return 0
