"""``python -m clead.evaluate RUN_OR_CHECKPOINT…``: how accurate trained models are when someone tries to fool them."""

from __future__ import annotations

from clead.errors import UserError, leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clead import data, report
from clead.attacks.autoattack import available as autoattack_available
from clead.cli import read_config
from clead.config import TrainConfig, parse_real
from clead.data import Splits
from clead.engine import checkpoint
from clead.engine.results import Row, read_results, row_key, write_results
from clead.engine.run import RunFolder, environment
from clead.loading import load_checkpoint
from clead.methods import find_method
from clead.models import Model
from clead.protocols.catalogue import NORMS, AttackSpec, find_attack
from clead.protocols.robustness import robustness
from clead.protocols.subject import Classifier, Subject
from clead.protocols.transfer import Transfer

LABELS = ("undefended", "random")
NOT_A_WARNING = {"subset", "sweep", "headline"}


@dataclass(frozen=True, eq=False)
class Opened:
    """A model read from disk, and where its rows go.

    Attributes:
        subject: what the protocols look at.
        model: the whole model.
        method: key of METHODS.
        config: what it was trained with.
        splits: its data set.
        folders: whose results.json gets the rows.
    """

    subject: Subject
    model: Model
    method: str
    config: TrainConfig
    splits: Splits
    folders: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Session:
    """One command: what it asks for, and everything it was given.

    Attributes:
        arguments: the command line.
        models: all of them, in order.
    """

    arguments: argparse.Namespace
    models: list[Opened]

    def radii(self, opened: Opened) -> Sequence[float]:
        """``--eps``, or those of the run."""
        return self.arguments.eps or opened.config.evaluation.eps

    @cached_property
    def transfer(self) -> Transfer:
        """The adversarial images of all models."""
        spec = find_attack("pgd20", norm=self.arguments.norm, steps=self.arguments.steps)
        return Transfer([opened.subject for opened in self.models], spec)


def attacks(session: Session, opened: Opened) -> Iterator[Row]:
    """Clean accuracy and the attacks of the command line."""
    yield from robustness(opened.subject, chosen_attacks(opened.config, session.arguments), session.radii(opened))


def transfer(session: Session, opened: Opened) -> Iterator[Row]:
    """PGD-20 made on each model, shown to this one."""
    for eps in session.radii(opened):
        yield from session.transfer.rows(opened.subject, eps)


PROTOCOLS: dict[str, Callable[[Session, Opened], Iterator[Row]]] = {
    "attacks": attacks,
    "transfer": transfer,
}


def chosen_attacks(config: TrainConfig, arguments: argparse.Namespace) -> list[AttackSpec]:
    """What ``--attacks`` names; by default the run's own attacks (PGD-20 off linf) and AutoAttack where it is there."""
    names = arguments.attacks
    if names is None:
        names = [*(config.evaluation.attacks if arguments.norm == "linf" else ["pgd20"])]
        names += ["autoattack"] if autoattack_available() else []
    settings = {"norm": arguments.norm, "steps": arguments.steps, "restarts": arguments.restarts}
    specs = [find_attack(name, **settings) for name in names]
    return list({(spec.name, spec.norm): spec for spec in specs}.values())


def open_all(arguments: argparse.Namespace) -> list[Opened]:
    """Every model that is to be evaluated, read and checked before the first attack."""
    paths: list[Path] = []
    for path in arguments.models:
        paths.append(path)
        if arguments.comparisons:
            paths += [path / "comparisons" / name for name in LABELS if (path / "comparisons" / name).is_dir()]
    cache: dict[tuple[str, Path], Splits] = {}
    models = [open_model(path, arguments, cache) for path in {path.resolve(): path for path in paths}.values()]
    names: dict[str, Path] = {}
    for opened, path in zip(models, paths, strict=False):
        name = opened.subject.key["run"]
        if name in names and names[name] != path:
            raise UserError(
                f"{path}: expected models with names of their own, but {names[name]} is called {name!r} too"
            )
        names[name] = path
    return models


def open_model(path: Path, arguments: argparse.Namespace, cache: dict[tuple[str, Path], Splits]) -> Opened:
    """The model of a run folder (its last stage, or ``--stage``) or of one checkpoint inside one."""
    single = (path / "meta.json").is_file()
    run = path.resolve().parent.parent if single else path
    method, _, config = read_config(run / "config.json")
    found = path if single else checkpoint.latest(run / "checkpoints", arguments.stage)
    if found is None:
        stage = f" of {arguments.stage}" if arguments.stage else ""
        raise UserError(f"{run / 'checkpoints'}: expected a checkpoint{stage}, found none")
    device = torch.device(arguments.device)
    model = load_checkpoint(found).to(device)
    stage, _, step = found.resolve().name.rpartition("-")
    if "classifier" not in model.heads:
        raise UserError(f"{found}: expected a checkpoint with a classifier, found one of the stage {stage}")
    labelled = find_method(method).labelled
    splits = _data(config, arguments, cache).to(device)
    compared = run.resolve().parent.name == "comparisons" and run.resolve().name in LABELS
    name = f"{run.resolve().name}/{stage}-{int(step)}" if single else run.resolve().name
    seed = config.seed if arguments.seed is None else arguments.seed
    key = {
        "run": name,
        "model": run.resolve().name if compared else "trained",
        "protocol": "end_to_end" if labelled and stage == "pretrain" else stage,
        "bn_branch": model.evaluation_branch,
        "dataset": config.data,
        "split": "test",
        "seed": seed,
        "dtype": "float32",
    }
    samples = torch.arange(min(len(splits.test), arguments.samples or len(splits.test)), device=device)
    subject = Subject(
        str(path),
        Classifier.of(model, model.evaluation_branch, getattr(config, "temperature", 0.5)),
        splits.test,
        samples,
        key,
        seed,
        config.impl,
        arguments.batch_size,
    )
    if arguments.out:
        folders = [arguments.out]
    elif single:
        folders = [run / "evaluations" / found.resolve().name]
    else:
        folders = [run, *([run.resolve().parent.parent] if compared else [])]
    return Opened(subject, model, method, config, splits, tuple(folders))


def _data(config: TrainConfig, arguments: argparse.Namespace, cache: dict[tuple[str, Path], Splits]) -> Splits:
    where = arguments.data_dir or config.data_dir
    if (config.data, where) not in cache:
        cache[config.data, where] = data.load(config.data, where)
    return cache[config.data, where]


def add_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Add rows to ``folder/results.json``; one with the key of an older row replaces it, all others stay."""
    if (folder / "config.json").is_file():
        RunFolder(folder).add_results(list(rows))
        return
    file = folder / "results.json"
    merged = {row_key(row): row for row in [*read_results(file), *rows]}
    write_results(file, list(merged.values()))


def evaluate(session: Session, opened: Opened, console: Console, versions: str) -> list[Row]:
    """Every row that was asked for of one model, each on disk before the next is measured."""
    rows: list[Row] = []
    for protocol in session.arguments.protocols:
        todo = PROTOCOLS[protocol](session, opened)
        while True:
            waiting = f"{opened.subject.key['run']}: {protocol}, {len(rows)} rows done"
            with console.status(waiting) if console.is_terminal else nullcontext():
                row = next(todo, None)
            if row is None:
                break
            rows.append(record(opened, row, versions))
            at = "" if row["eps"] is None else f" {row['norm']} eps {row['eps']:.4g}"
            flags = "".join(f" [{flag}]" for flag in row["flags"])
            accuracy = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%}, {row['samples']} images)"
            report.emit(console, f"{row['run']} {row['name']}{at}: {accuracy}, {row['seconds']:.1f} s{flags}")
    return rows


def record(opened: Opened, row: Row, versions: str) -> Row:
    """Write a row wherever the model's rows go; a comparison's row goes into the run beside it under that name."""
    row = {**row, "versions": versions}
    for index, folder in enumerate(opened.folders):
        add_rows(folder, [row if index == 0 else {**row, "run": folder.name}])
    return row


def write_csv(folder: Path) -> None:
    """``results.csv``: the rows of results.json, flags separated by semicolons."""
    rows = read_results(folder / "results.json")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    temporary = folder / ".tmp-results.csv"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**row, "flags": ";".join(row["flags"] or ())} for row in rows)
    temporary.replace(folder / "results.csv")


def show(todo: Sequence[Opened], rows: Sequence[Row], console: Console) -> None:
    """The tables, the headline of every model, and every red flag."""
    methods = {opened.subject.key["run"]: opened.method for opened in todo}
    matrix = [row for row in rows if is_transfer(row)]
    shown = [{**row, "method": methods[row["run"]]} for row in rows if not is_transfer(row)]
    for norm, eps in dict.fromkeys((row["norm"], row["eps"]) for row in matrix):
        report.emit(console, f"transfer at {norm} eps {eps:.4g}: targets in rows, sources in columns, accuracy in %")
        console.print(transfer_table([row for row in matrix if (row["norm"], row["eps"]) == (norm, eps)]))
    for dataset in dict.fromkeys(row["dataset"] for row in shown):
        report.show_table([row for row in shown if row["dataset"] == dataset], console, markdown=False)
    report.emit(console, *headlines(rows), *warnings(rows))


def is_transfer(row: Row) -> bool:
    """Whether the adversarial images of a row were made on a model that the row names."""
    return str(row["attack"]).startswith("transfer:")


def transfer_table(rows: Sequence[Row]) -> Table:
    """Targets in rows, sources in columns, accuracy in percent."""
    sources = list(dict.fromkeys(row["attack"].removeprefix("transfer:") for row in rows))
    title = (
        f"transfer at {rows[0]['norm']} eps {rows[0]['eps']:.4g}: targets in rows, sources in columns, accuracy in %"
    )
    table = Table(title=Text(title), title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for source in sources:
        table.add_column(Text(source), justify="right", overflow="fold")
    for target in dict.fromkeys(row["run"] for row in rows):
        cells = {row["attack"]: f"{100 * row['accuracy']:.1f}" for row in rows if row["run"] == target}
        table.add_row(Text(target), *(cells[f"transfer:{source}"] for source in sources))
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
            yield f"{run}: no headline at {norm} eps {eps:.4g}: that takes autoattack, or apgd_ce and apgd_t"
        else:
            yield f"{run}: headline at {norm} eps {eps:.4g} is {best['name']}, {best['accuracy']:.1%}"


def _strength(row: Row) -> tuple[float, bool]:
    return row["accuracy"], row["attack"] != "autoattack"


def warnings(rows: Iterable[Row]) -> Iterator[str]:
    """One line per flagged row."""
    for row in rows:
        flags = [flag for flag in row["flags"] if flag not in NOT_A_WARNING]
        if flags:
            at = "" if row["eps"] is None else f" at eps {row['eps']:.4g}"
            yield f"RED FLAG {row['run']} {row['name']}{at}: {', '.join(flags)}"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = argparse.ArgumentParser(prog="python -m clead.evaluate", description=__doc__)
    add = parser.add_argument
    add("models", metavar="RUN_OR_CHECKPOINT", nargs="+", type=Path, help="a run folder, or a checkpoint inside one")
    add("--attacks", type=words, metavar="A,B", help="such as fgsm,pgd20,pgd40_l2,cw_l2,autoattack")
    add("--eps", type=words, metavar="EPS,…", help="radii, pixels in [0, 1]: 8/255,0.1; default those of the run")
    add("--norm", choices=NORMS, default="linf", help="the ball of attacks that name none")
    add("--steps", type=int, help="gradient steps of attacks that name none")
    add("--restarts", type=int, help="random restarts of our own attacks")
    add("--samples", type=int, help="only the first N test images; rows are flagged subset")
    add("--protocols", type=words, default=["attacks"], metavar="P,…", help=", ".join(PROTOCOLS))
    add("--stage", help="the stage whose checkpoint is evaluated; default the last one")
    add("--comparisons", action="store_true", help="also the models that a run was compared with")
    add("--seed", type=int, help="of random starts; default that of the run")
    add("--batch-size", type=int, default=500, help="images attacked at once")
    add("--device", default="cpu", help="cpu or cuda")
    add("--data-dir", type=Path, help="where the data set is; default where it was in training")
    add("--out", type=Path, help="write results.json there instead of into the run folders")
    arguments = parser.parse_args(argv)
    if arguments.eps is not None:
        arguments.eps = [parse_real(word) for word in arguments.eps]
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    for name in ("steps", "restarts", "samples", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for eps in arguments.eps or ():
        if eps < 0 or (arguments.norm == "linf" and eps > 1):
            raise UserError(f"--eps must be in [0, 1] for linf and at least 0 otherwise, got {eps}")
    for name in arguments.protocols:
        if name not in PROTOCOLS:
            raise UserError(f"--protocols must be of {', '.join(PROTOCOLS)}, got {name!r}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device and a CUDA build of torch; found none")
    if arguments.device not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {arguments.device!r}")
    if arguments.norm != "linf" and arguments.eps is None:
        raise UserError(f"--norm {arguments.norm} needs --eps: the radii of the run are linf")


def versions_of(device: str) -> str:
    """What a number needs beside it, in one line."""
    here = environment()
    commit = f"{(here['commit'] or 'unknown')[:12]}{'+changes' if here['dirty'] else ''}"
    return f"commit {commit}, torch {here['torch']}, {here['device'] if device == 'cuda' else 'cpu'}"


def main(argv: list[str]) -> None:
    """The command."""
    arguments = parse(argv)
    console = report.output_console()
    todo = open_all(arguments)
    for opened in todo:
        chosen_attacks(opened.config, arguments)  # a wrong name is an error before the first attack
    versions = versions_of(arguments.device)
    session = Session(arguments, todo)
    folders = list(dict.fromkeys(folder.resolve() for opened in todo for folder in opened.folders))
    rows: list[Row] = []
    with ExitStack() as locks:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(RunFolder(folder).locked())
        for opened in todo:
            try:
                rows += evaluate(session, opened, console, versions)
            except NotImplementedError as error:
                raise UserError(f"{opened.subject.name}: {error}") from error
        for folder in folders:
            write_csv(folder)
    show(todo, rows, console)
    report.emit(console, f"Rows are in {', '.join(str(folder / 'results.json') for folder in folders)}")


if __name__ == "__main__":
    run_command(main)
