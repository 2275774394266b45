"""Markdown made from rows, between markers ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``. Nothing is typed."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from .. import ROOT, rows
from ..table import milliseconds
from . import foretold, goals, predicted
from .chips import CHIPS
from .latest import Latest, load, number

RESULTS = ROOT / "bench" / "results"
FILES = (ROOT / "README.md", ROOT / "bench" / "README.md")
RIVALS = ("eager", "careful", "compile", "linear_cross_entropy", "inf_cl", "cut_cross_entropy", "liger", "foolbox")
SUMMARY = ("nt_xent/n1024-d128-t0.5", "nt_xent/n4096-d128-t0.5", "nt_xent/n8192-d128-t0.5", "nt_xent/n16384-d128-t0.5")
WORST = 20


def markdown(cells: list[list[str]], left: int = 1) -> str:
    """A table; the first ``left`` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(cells[0]) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def measured(machine: Latest, clock: str = "wall") -> str:
    """Every case with a time of ours, and whoever else has one there."""
    cases = machine.cases(clock)
    rivals = [name for name in RIVALS if any(machine.time(case, name, clock=clock) for case in cases)]
    line = {case: _line(machine, case, clock) for case in cases}
    cells = [["case", *(f"{name} ms" for name in rivals), "line ms", "ours ms", "x eager", "x line", "MB", "eager MB"]]
    for case in cases:
        ours = machine.ours(case, clock)
        assert ours is not None
        eager = machine.row(case, "eager", clock=clock) or {}
        cells.append([
            f"`{case}`",
            *(milliseconds(machine.time(case, name, clock=clock)) for name in rivals),
            milliseconds(line[case]),
            f"{milliseconds(ours['p50_ms'])} ({ours['impl']})",
            _ratio(eager.get("p50_ms"), ours["p50_ms"]),
            _ratio(line[case], ours["p50_ms"]),
            _megabytes(ours),
            _megabytes(eager),
        ])  # fmt: skip
    return markdown(cells)


def worst(machine: Latest, clock: str = "wall") -> str:
    """Where a rival comes closest, or is faster: the 20 smallest ratios of its time to ours."""
    found = []
    for case in machine.cases(clock):
        ours = machine.ours(case, clock)
        assert ours is not None
        for name in machine.impls():
            row = machine.row(case, name, clock=clock)
            if row and row["kind"] == "rival" and row["p50_ms"] and row["dtype"] and not name.startswith("eager_"):
                found.append((row["p50_ms"] / ours["p50_ms"], case, name))
    cells = [["case", "rival", "its time / ours"]]
    cells += [[f"`{case}`", name, f"{ratio:.2f}"] for ratio, case, name in sorted(found)[:WORST]]
    return markdown(cells, left=2)


def results(machines: list[Latest]) -> str:
    text = []
    for machine in machines:
        for clock in ("wall", "graph"):
            if machine.cases(clock):
                text += [
                    f"**{machine.name}**, {machine.threads} threads, clock `{clock}`; medians:",
                    measured(machine, clock),
                ]
                text += [f"The {WORST} worst ratios there:", worst(machine, clock)]
    return "\n\n".join(text or ["No rows yet."])


def summary(machines: list[Latest]) -> str:
    """The README's: NT-Xent, forward and backward, against the papers' eager form."""
    text = []
    for machine in machines:
        clock = "graph" if machine.cases("graph") else "wall"
        cells = [["NT-Xent, d = 128", "eager ms", "ours ms", "x eager", "x matrix products alone", "MB", "eager MB"]]
        for case in [f"{case}-{dtype}" for dtype in ("fp32", "bf16") for case in SUMMARY]:
            ours, eager = machine.ours(case, clock), machine.row(case, "eager", clock=clock) or {}
            if ours and eager.get("p50_ms"):
                times = [milliseconds(eager["p50_ms"]), milliseconds(ours["p50_ms"])]
                ratios = [_ratio(eager["p50_ms"], ours["p50_ms"]), _ratio(_line(machine, case, clock), ours["p50_ms"])]
                name = f"{int(ours['rows']):,} rows, {ours['dtype']}"
                cells.append([name, *times, *ratios, _megabytes(ours), _megabytes(eager)])
        if len(cells) > 1:
            text += [f"{machine.name}, {machine.threads} threads, forward and backward, medians:", markdown(cells)]
    return "\n\n".join(text or ["No rows yet."])


def steps(folder: Path) -> str:
    """Whole training steps: every form of each against the plain one, the last row of each."""
    last = {}
    for path in sorted(folder.glob("*/step.csv")):
        for row in rows.read(path):
            if row["mode"] == "full" and row["p50_ms"]:
                last[path.parent.name, row["threads"], row["case"], row["impl"]] = row
    if not last:
        return "No rows yet."
    cells = [["device", "step", "form", "ms", "x plain", "of matmul", "MB"]]
    for (device, threads, case, form), row in last.items():
        ratio, part = number(row["ratio_to_eager"]), number(row["ratio_to_line"])
        told = ["" if ratio is None else f"{ratio:.2f}", "" if part is None else f"{part:.0%}", _megabytes(row)]
        cells.append([f"{device}, {threads} threads", f"`{case}`", form, milliseconds(row["p50_ms"]), *told])
    return markdown(cells, left=3)


def asked(machines: list[Latest], predictions: list[dict[str, str]]) -> str:
    """Both lists of goals, on the machines that have rows for them; what the first chip is predicted to reach."""
    on_cuda = [m for m in machines if m.cases("graph")]
    text = []
    for machine in [m for m in machines if m not in on_cuda][:1] or [None]:
        text.append(markdown([goals.HEAD, *goals.lines(machine, goals.cpu_goals())], left=2))
    chip = foretold.machine(predictions, CHIPS[0])
    head = [*goals.HEAD[:3], f"{chip.name} predicted", *goals.HEAD[3:]]
    for machine in on_cuda or [None]:
        text.append(markdown([head, *goals.lines(machine, goals.cuda_goals(), chip)], left=2))
    return "\n\n".join(text)


def blocks() -> dict[str, str]:
    """What stands between the markers of each name."""
    machines = load(RESULTS)
    with (RESULTS / "predicted.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    return {
        "results": results(machines),
        "summary": summary(machines),
        "steps": steps(RESULTS),
        "goals": asked(machines, predictions),
        "predicted": markdown(predicted.short(_of_bfloat16(predictions)), left=2),
    }


def _of_bfloat16(predictions: list[dict[str, str]]) -> list[dict[str, str]]:
    """What a page has room for, operator by operator; the file has everything."""
    return sorted((row for row in predictions if row["case"].endswith("-bf16")), key=lambda row: row["op"])


def filled(text: str, made: dict[str, str]) -> str:
    """``text`` with every block between markers made anew."""
    for name, content in made.items():
        pattern = rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)"
        text = re.sub(pattern, lambda found, new=content: f"{found[1]}\n{new}\n\n{found[2]}", text, flags=re.DOTALL)
    return text


def outdated() -> list[Path]:
    """Files whose blocks are not what the results say."""
    made = blocks()
    return [path for path in FILES if filled(path.read_text(), made) != path.read_text()]


def main(arguments: list[str]) -> int:
    """Write the tables into both READMEs, and the plots beside the results."""
    if arguments:
        print("usage: python -m bench report: writes tables and plots from bench/results; it takes no arguments")
        return 2
    made = blocks()
    for path in outdated():
        path.write_text(filled(path.read_text(), made))
        print(path)
    from . import plots  # matplotlib, for those who want pictures

    for path in plots.write(RESULTS):
        print(path)
    return 0


def _line(machine: Latest, case: str, clock: str) -> float | None:
    """The line to beat."""
    return machine.time(case, "products", clock=clock) or machine.time(case, "traffic", clock=clock)


def _ratio(other: float | None, ours: float) -> str:
    return "" if not other else f"{other / ours:.2f}"


def _megabytes(row: dict[str, object]) -> str:
    value = number(row.get("peak_mb"))
    return "" if value is None else f"{value:.1f}"
