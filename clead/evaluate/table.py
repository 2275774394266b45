"""What a command shows: tables, the headline of every model, red flags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clead import report
from clead.engine.results import Row
from clead.evaluate.models import Opened
from clead.figures.style import format_eps
from clead.protocols.corruptions.evaluation import STYLE

NOT_A_WARNING = {"subset", "sweep", "headline", STYLE}


def show(todo: Sequence[Opened], rows: Sequence[Row], console: Console) -> None:
    """The tables, the headline of every model, and every red flag."""
    methods = {opened.subject.key["run"]: opened.method for opened in todo}
    matrix = [row for row in rows if is_transfer(row)]
    damaged = [row for row in rows if row["corruption"]]
    rest = [row for row in rows if not is_transfer(row) and not row["corruption"]]
    shown = [{**row, "method": methods[row["run"]]} for row in rest]
    for run, dataset in dict.fromkeys((row["run"], row["dataset"]) for row in damaged):
        group = [row for row in damaged if (row["run"], row["dataset"]) == (run, dataset)]
        own = STYLE in group[0]["flags"]
        made = f"{dataset}, corrupted by our own generator in the style of CIFAR-10-C: no number of a published table"
        report.emit(console, f"{run}: accuracy in % on {made if own else dataset}, by severity")
        console.print(corruption_table(group))
    for norm, eps in dict.fromkeys((row["norm"], row["eps"]) for row in matrix):
        at = f"{norm} eps {format_eps(eps)}"
        report.emit(console, f"transfer at {at}: targets in rows, sources in columns, accuracy in %")
        console.print(transfer_table([row for row in matrix if (row["norm"], row["eps"]) == (norm, eps)]))
    for dataset in dict.fromkeys(row["dataset"] for row in shown):
        report.show_table([row for row in shown if row["dataset"] == dataset], console, markdown=False)
    named = told_apart(rows)
    report.emit(console, *headlines(named), *warnings(named))


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of a model of which several classifiers were attacked under a name for each of these."""
    attacked: dict[str, set[str]] = {}
    for row in rows:
        if row["attack"]:
            attacked.setdefault(row["run"], set()).add(row["protocol"])
    return [of_classifier(row) if len(attacked.get(row["run"], ())) > 1 else row for row in rows]


def of_classifier(row: Row) -> Row:
    """The row under the name of its model's classifier, for people."""
    return {**row, "run": f"{row['run']} {row['protocol']}"}


def describe(row: Row) -> str:
    """A row, or a measure, in one line."""
    if "value" in row:
        return f"{row['run']} {row['name']} of {row['of']}: {row['value']:.4g} ({row['formula']})"
    at = "" if row["eps"] is None else f" {row['norm']} eps {format_eps(row['eps'])}"
    at += f" severity {row['severity']}" if row["severity"] else ""
    flags = "".join(f" [{flag}]" for flag in row["flags"])
    accuracy = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%}, {row['samples']} images)"
    distance = f", median distance {row['median_norm']:.4g}" if row.get("median_norm") is not None else ""
    name = row["protocol"] if str(row["protocol"]).startswith(("knn", "logistic_regression")) else row["name"]
    return f"{row['run']} {name}{at}: {accuracy}{distance}, {row['seconds']:.1f} s{flags}"


def is_transfer(row: Row) -> bool:
    """Whether the adversarial images of a row were made on a model that the row names."""
    return str(row["attack"]).startswith("transfer:")


def transfer_table(rows: Sequence[Row]) -> Table:
    """Targets in rows, sources in columns, accuracy in percent."""
    sources = list(dict.fromkeys(row["attack"].removeprefix("transfer:") for row in rows))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for source in sources:
        table.add_column(Text(source), justify="right", overflow="fold")
    for target in dict.fromkeys(row["run"] for row in rows):
        cells = {row["attack"]: f"{100 * row['accuracy']:.1f}" for row in rows if row["run"] == target}
        table.add_row(Text(target), *(cells[f"transfer:{source}"] for source in sources))
    return table


def corruption_table(rows: Sequence[Row]) -> Table:
    """Types in rows, severities in columns, accuracy in percent."""
    severities = sorted({row["severity"] for row in rows})
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for severity in severities:
        table.add_column(str(severity), justify="right")
    for name in dict.fromkeys(row["corruption"] for row in rows):
        cells = {row["severity"]: f"{100 * row['accuracy']:.1f}" for row in rows if row["corruption"] == name}
        table.add_row(name, *(cells[severity] for severity in severities))
    return table


def headlines(rows: Iterable[Row]) -> Iterator[str]:
    """What a claim of robustness may rest on, per model, norm and radius; or that there is nothing."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if (
            row["attack"]
            and row["eps"]
            and not is_transfer(row)
            and "sweep" not in row["flags"]
            and not row["corruption"]
        ):
            groups.setdefault((row["run"], row["model"], row["norm"], row["eps"]), []).append(row)
    for (run, _, norm, eps), group in groups.items():
        best = min((row for row in group if "headline" in row["flags"]), key=_strength, default=None)
        if best is None:
            yield f"{run}: no headline at {norm} eps {format_eps(eps)}: that takes autoattack, or apgd_ce and apgd_t"
        else:
            least = min(group, key=lambda row: row["accuracy"])
            beyond = f", yet {least['name']} went lower: report its {least['accuracy']:.1%}"
            beyond = beyond if least["accuracy"] < best["accuracy"] else ""
            yield f"{run}: headline at {norm} eps {format_eps(eps)} is {best['name']}, {best['accuracy']:.1%}{beyond}"


def _strength(row: Row) -> tuple[float, bool]:
    return row["accuracy"], row["attack"] != "autoattack"


def warnings(rows: Iterable[Row]) -> Iterator[str]:
    """One line per flagged row."""
    for row in rows:
        flags = [flag for flag in row["flags"] if flag not in NOT_A_WARNING]
        if flags:
            at = "" if row["eps"] is None else f" at eps {format_eps(row['eps'])}"
            yield f"RED FLAG {row['run']} {row['name']}{at}: {', '.join(flags)}"
