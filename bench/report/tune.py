"""Tile shapes by an offline sweep on a CUDA device: ``python -m bench tune``; nothing is tuned in anyone's first step.

From the shipped shape of every entry of a table it goes downhill: each neighbour (one of rows, columns, warps, stages
halved or doubled, or one stage more or less) is compiled, refused if it spills or is wrong, and timed against the
shipped one in turns. Every shape tried goes to ``bench/results/tune-<device>.csv``; ``--write`` puts the winners that
gain at least 3% into the source of the tables, after which ``python -m clead_kernels.triton_resources`` must run.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import clead_kernels

from .. import rows, timing
from ..cases import Loss
from ..contenders import contenders
from ..gate import Gate

RESULTS = Path(__file__).parents[1] / "results"
SOURCES = Path(clead_kernels.__file__).parent / "contrastive"
GAIN = 1.03
KINDS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
FIELDS = ("file", "kernel", "masks", "width", "dtype", "which", "shape", "shipped", "ms", "shipped_ms", "reason")

Key = tuple[str, str, int, str]
Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Entry:
    """One shape of a table: for few rows (0) or many (1), and the case that it is timed on."""

    file: str
    key: Key
    which: int
    case: Loss

    @property
    def mode(self) -> int:
        """The stage that its kernel runs in."""
        return 0 if self.key[0] == "forward" else 1


def entries(tables: dict[str, dict[Key, Any]], widths: list[int], dtypes: list[str]) -> Iterator[Entry]:
    """What is to be tuned, the most used first."""
    sizes = {"triton_small_configs.py": (1024, 4096), "triton_configs.py": (1024, 65536)}
    for file, which in (*((name, 0) for name in sizes), *((name, 1) for name in sizes)):
        for key in tables[file]:
            _, masks, width, dtype = key
            if width in widths and dtype in dtypes:
                rule = {"classes": 100, "rule": "threshold", "temperature": 0.1} if masks == "rules" else {}
                case = Loss("nt_xent", sizes[file][which], dim=width, dtype=KINDS[dtype], **rule)
                yield Entry(file, key, which, case)


def neighbours(shape: Shape) -> Iterator[Shape]:
    """Shapes one step away that Triton can compile."""
    block_m, block_n, block_k, warps, stages = shape
    for other in (block_m // 2, block_m * 2):
        if 16 <= other <= 256:
            yield other, block_n, block_k, warps, stages
    for other in (block_n // 2, block_n * 2):
        if 16 <= other <= 256:
            yield block_m, other, block_k, warps, stages
    for other in (warps // 2, warps * 2):
        if 2 <= other <= 8:
            yield block_m, block_n, block_k, other, stages
    for other in (stages - 1, stages + 1):
        if 1 <= other <= 4:
            yield block_m, block_n, block_k, warps, other


def descend(start: Shape, compare: Callable[[Shape, Shape], float | None], late: Callable[[], bool]) -> Shape:
    """The shape that no neighbour beats; ``compare(a, b)`` is how many times faster ``a`` is, None if it cannot run."""
    best, tried = start, {start}
    while True:
        found = {}
        for shape in neighbours(best):
            if shape not in tried and not late():
                tried.add(shape)
                if (gain := compare(shape, best)) is not None:
                    found[shape] = gain
        if not found or max(found.values()) < GAIN:
            return best
        best = max(found, key=lambda shape: found[shape])


def replaced(source: str, key: Key, which: int, shape: Shape) -> str:
    """``source`` with one shape of one entry exchanged.

    Raises:
        ValueError: the entry does not stand there as a line of its own.
    """
    name = f'("{key[0]}", "{key[1]}", {key[2]}, "{key[3]}"): '
    pattern = re.escape(name) + r"\((Config\([^)]*\)), (Config\([^)]*\))\)"
    found = re.search(pattern, source)
    if found is None:
        raise ValueError(f"the table has no line {name}(Config, Config)")
    pair = [found[1], found[2]]
    pair[which] = f"Config({', '.join(map(str, shape))})"
    return source[: found.start()] + f"{name}({', '.join(pair)})" + source[found.end() :]


class Bench:
    """Times shapes of one entry in place of the shipped one."""

    def __init__(self, entry: Entry, table: dict[Key, Any], forget: Callable[[], None]) -> None:
        self.entry, self.table, self.forget = entry, table, forget
        self.shipped = table[entry.key]
        self.gate = Gate(entry.case, "cuda", seeds=1)
        names = {contender.impl: contender for contender in contenders(entry.case)}
        self.gate.judge(names["eager"])
        self.ours = names["triton"]
        self.tried: list[dict[str, Any]] = []

    def compare(self, shape: Shape, other: Shape) -> float | None:
        """How many times faster ``shape`` is than ``other``; None where it cannot run or is wrong."""
        made = {}
        for name in (other, shape):
            self._take(name)
            try:
                verdict, work = self.gate.judge(self.ours)
            except Exception as error:  # too many registers or too much shared memory: refused by compiler or driver
                return self._note(shape, reason=(str(error).strip().splitlines() or [type(error).__name__])[0][:200])
            if verdict.reason:
                return self._note(shape, reason=verdict.reason)
            # Kernels are looked up when called: a graph keeps those it was captured with.
            made[str(name)] = timing.Replayed([work])
        samples = timing.interleave(made, timing.DeviceClock(), seconds=0.3, fewest=20)
        times = {name: timing.summarize([s[self.entry.mode] for s in found]).p50 for name, found in samples.items()}
        return self._note(shape, times[str(shape)], times[str(other)])

    def restore(self) -> None:
        self.table[self.entry.key] = self.shipped
        self.forget()

    def _take(self, shape: Shape) -> None:
        self.table[self.entry.key] = (type(self.shipped[0])(*shape),) * 2
        self.forget()

    def _note(
        self, shape: Shape, took: float | None = None, other: float | None = None, reason: str = ""
    ) -> float | None:
        kernel, masks, width, dtype = self.entry.key
        row = {"file": self.entry.file, "kernel": kernel, "masks": masks, "width": width, "dtype": dtype}
        row |= {"which": ("few", "many")[self.entry.which], "shape": "x".join(map(str, shape)), "reason": reason}
        row |= {"shipped": "x".join(map(str, self.shipped[self.entry.which])), "ms": took, "shipped_ms": other}
        self.tried.append(row)
        return other / took if took and other else None


def main(arguments: list[str]) -> int:
    """0 = done or out of time, what was tried is written either way."""
    parser = argparse.ArgumentParser("python -m bench tune", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=6.0, metavar="M", help="start nothing after that (%(default)s)"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[128], metavar="D")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=tuple(KINDS))
    parser.add_argument("--csv", type=Path, default=RESULTS, metavar="DIR", help="DIR/tune-<device>.csv (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put the winners into the tables' source")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise ValueError("tuning times kernels on a CUDA device, and torch sees none here")
    from clead_kernels.contrastive import small, triton_configs, triton_small, triton_small_configs

    tables = {"triton_configs.py": triton_configs.TABLE, "triton_small_configs.py": triton_small_configs.TABLE}
    end, most = time.monotonic() + 60 * options.minutes, small.MAX_ROWS
    for entry in entries(tables, options.widths, options.dtypes):
        if time.monotonic() > end:
            print("out of time")
            break
        small.MAX_ROWS = most if entry.file == "triton_small_configs.py" else 0  # few rows reach the other table too
        bench = Bench(entry, tables[entry.file], triton_small._plans.clear)
        try:
            shipped = tuple(bench.shipped[entry.which])
            best = descend(shipped, bench.compare, lambda: time.monotonic() > end)
        finally:
            bench.restore()
            small.MAX_ROWS = most
        print(*entry.key, ("few", "many")[entry.which], shipped, "->", best if best != shipped else "stays", flush=True)
        _append(options.csv / f"tune-{rows.slug(torch.cuda.get_device_name())}.csv", bench.tried)
        if options.write and best != shipped:
            path = SOURCES / entry.file
            path.write_text(replaced(path.read_text(), entry.key, entry.which, best))
    return 0


def _append(path: Path, tried: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(tried)
