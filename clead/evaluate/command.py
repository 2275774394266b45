"""The command: its rows on disk, its tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from clead import report
from clead.config import CLASSIFIER_STAGES
from clead.engine.environment import environment, name_commit
from clead.engine.files import write_atomic
from clead.engine.memory import keep_freed_memory
from clead.engine.progress import Progress
from clead.engine.results import KEY, Row, add_results, read_results, renamed
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.evaluate import measures
from clead.evaluate.arguments import parse
from clead.evaluate.figures import expand, folder_of, write_data
from clead.evaluate.finetuning import finetuned, settings_of
from clead.evaluate.measures import accuracy_measures, add_entries, read_entries
from clead.evaluate.models import Opened
from clead.evaluate.session import PROTOCOLS, Session, attacks, chosen_attacks, open_all, sanity_checks
from clead.evaluate.table import describe, of_classifier, show
from clead.own_modules import import_own
from clead.protocols.figure_data import FIGURE_DATA, NotApplicable
from clead.sources import Sources


def versions_of(device: str) -> str:
    """What a number needs beside it, in one line."""
    here = environment()
    return f"{name_commit(here)}, torch {here['torch']}, {here['device'] if device == 'cuda' else 'cpu'}"


def main(argv: list[str]) -> None:
    """The command."""
    import_own(argv)
    arguments = parse(argv)
    if arguments.device == "cpu":
        keep_freed_memory()
    else:  # float32 is float32, as in training
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    console = report.output_console()
    sources = Sources()
    todo = open_all(arguments, sources)
    figures = set(FIGURE_DATA) & set(expand(arguments.protocols))
    for name in arguments.gap or ():
        if name not in {opened.subject.key["run"] for opened in todo}:
            raise UserError(f"--gap must name runs that are evaluated, got {name!r}")
    for opened in todo:
        chosen_attacks(opened.config, arguments)  # a wrong name is an error before the first attack
        if figures:
            folder_of(opened)  # and so is a folder that no figure is drawn from
    versions = versions_of(arguments.device)
    session = Session(arguments, todo, sources)
    if arguments.stage_flags:
        for opened in todo:
            settings_of(session, opened)
    folders = list(dict.fromkeys(folder.resolve() for opened in todo for folder in opened.folders))
    recorded: list[tuple[Row, bool]] = []
    with ExitStack() as locks:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(RunFolder(folder).locked())
            read_results(folder / "results.json")  # a damaged file is an error before the first attack
        for opened in todo:
            try:
                recorded += evaluate(session, opened, console, versions)
            except (NotImplementedError, UserError) as error:
                raise UserError(f"{opened.subject.name}: {error}") from error
        by_name = {opened.subject.key["run"]: opened for opened in todo}
        for measure in accuracy_measures([row for row, _ in recorded], arguments.gap):
            recorded.append(record(by_name[measure["run"]], measure, versions))
            if measure["name"] != "relative_drop":  # one more line for every row above
                report.emit(console, describe(measure))
        for folder in folders:
            if (folder / "results.json").is_file():
                write_csv(folder)
    show(todo, [row for row, _ in recorded if "accuracy" in row], console)
    if recorded:
        report.emit(console, f"Rows are in {', '.join(str(folder / 'results.json') for folder in folders)}")
    fewer = sum(kept_out for _, kept_out in recorded)
    if fewer:
        report.emit(console, f"{fewer} of them were there, of more images, and stay as they were")
    if figures:
        report.emit(console, f"python -m clead.report {' '.join(map(str, arguments.models))} draws the figures")


def evaluate(session: Session, opened: Opened, console: Console, versions: str) -> list[tuple[Row, bool]]:
    """What ``record`` returns of every row that was asked for of one model; each is on disk before the next."""
    recorded: list[tuple[Row, bool]] = []
    protocols = expand(session.arguments.protocols)
    if not set(protocols) <= set(CLASSIFIER_STAGES):  # they make classifiers of their own
        opened = with_suspicions(session, opened, console, versions)
    for protocol in protocols:
        if protocol in FIGURE_DATA:
            report.emit(console, compute(session, opened, protocol, console, versions))
            continue
        looked_at, measure = opened, PROTOCOLS.get(protocol, attacks)
        if protocol in CLASSIFIER_STAGES:
            fitted = finetuned(session, opened, protocol, Progress(console))
            looked_at = with_suspicions(session, fitted, console, versions)
        with watched(looked_at, protocol, console) as shown:
            for row in measure(session, shown):
                recorded.append(record(opened, row, versions))
                report.emit(console, describe(row if looked_at is opened else of_classifier(row)))
    return recorded


def compute(session: Session, opened: Opened, figure: str, console: Console, versions: str) -> str:
    """Write the data of one figure; returns what to say of it. One that ``figures`` asked for may not exist."""
    run = opened.subject.key["run"]
    try:
        with console.status(f"{run}: {figure}") if console.is_terminal else nullcontext():
            path = write_data(opened, figure, session.radii(opened), versions)
    except NotApplicable as error:
        if figure in session.arguments.protocols:
            raise UserError(f"{figure} {error}") from error
        return f"{run} {figure}: left out, it {error}"
    return f"{run} {figure}: {path}"


@contextmanager
def watched(opened: Opened, protocol: str, console: Console) -> Iterator[Opened]:
    """The model, with a line on a terminal that counts the images attacked."""
    if not console.is_terminal:
        yield opened
        return
    label = f"{opened.subject.key['run']}: {protocol}"
    with console.status(label) as status:
        seen = 0

        def on_batch(images: int) -> None:
            nonlocal seen
            seen += images
            status.update(f"{label}, {seen:,} images attacked")

        yield replace(opened, subject=replace(opened.subject, on_batch=on_batch))


def with_suspicions(session: Session, opened: Opened, console: Console, versions: str) -> Opened:
    """The model with the flags that the checks found it to deserve; ``sanity.json`` gets all checks."""
    checks = []
    with console.status("sanity checks") if console.is_terminal else nullcontext():
        for check in sanity_checks(session, opened):
            checks.append(check)
            if check.found or session.arguments.sanity:
                verdict = {True: "RED FLAG", False: "fine", None: "undecided"}[check.found]
                report.emit(console, f"{opened.subject.key['run']} {check.flag}: {verdict}; {check.detail}")
    for index, folder in enumerate(opened.folders):
        run = opened.subject.key["run"] if index == 0 else folder.name
        key = {**opened.subject.key, "run": run, "samples": len(opened.subject.samples), "versions": versions}
        entries = [{**key, "name": check.flag, **asdict(check)} for check in checks]
        add_entries(folder / "sanity.json", entries, opened.only(run))
    suspicions = tuple(check.flag for check in checks if check.found)
    return replace(opened, subject=replace(opened.subject, suspicions=(*opened.subject.suspicions, *suspicions)))


def record(opened: Opened, row: Row, versions: str) -> tuple[Row, bool]:
    """Add a row to ``results.json``, or a measure to ``measures.json``, wherever the model's rows go.

    A comparison's row goes into the run beside it under that name.

    Returns:
        The row, and whether it was kept out somewhere, see ``measured_on_more``.
    """
    row, kept_out = {**row, "versions": versions}, False
    for index, folder in enumerate(opened.folders):
        named = row if index == 0 else {**row, "run": folder.name}
        if measured_on_more(opened, folder, row):
            kept_out = True
        elif "value" in row:
            add_entries(folder / "measures.json", [named], opened.only(named["run"]))
        else:
            add_results(folder / "results.json", [named], opened.only(named["run"]))
    return row, kept_out


def measured_on_more(opened: Opened, folder: Path, row: Row) -> bool:
    """Whether the row, or measure, is there of more images: a quick look must not cost an hour's result.

    In a run folder it is of the same weights and settings; elsewhere the name may be another model's by now.
    """
    if opened.shared or not opened.whole:
        return False
    run, key = folder.resolve().name, measures.KEY if "value" in row else KEY
    file = folder / ("measures.json" if "value" in row else "results.json")
    found = read_entries(file) if "value" in row else read_results(file)
    asked = [{**row, "run": run}.get(field) for field in key]
    there = next((old for old in found if [renamed(old, run).get(field) for field in key] == asked), {})
    if "sweep" in (there.get("flags") or ()) and "sweep" not in (row.get("flags") or ()):
        return False  # a point of a sweep stands in no table
    samples = there.get("samples")
    return isinstance(samples, int) and samples > row["samples"]


def write_csv(folder: Path) -> None:
    """``results.csv``: the rows of results.json, flags separated by semicolons."""
    rows = read_results(folder / "results.json")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({**row, "flags": ";".join(row["flags"] or ())} for row in rows)
    write_atomic(folder / "results.csv", text.getvalue().encode())
