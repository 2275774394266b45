"""What a command measures: its protocols, and what they share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from clead.attacks.autoattack import available as autoattack_available
from clead.config import Comparison, Encoding, TrainConfig
from clead.engine.results import Row, read_results, renamed, row_key
from clead.errors import UserError
from clead.evaluate.measures import encoding_measures
from clead.evaluate.models import Opened, open_model
from clead.evaluate.outside import is_outside, open_outside
from clead.methods import find_method
from clead.models import Model
from clead.protocols.attempts import AttackSpec
from clead.protocols.catalogue import find_attack, find_attacks
from clead.protocols.corruptions import corruption_rows
from clead.protocols.knn import knn
from clead.protocols.logistic_regression import logistic_regression
from clead.protocols.robustness import clean_outcome, outcome_row, robustness
from clead.protocols.sanity import Check, quick_checks, thorough_checks
from clead.protocols.sweeps import RADII, eps_cases, steps_cases, sweep
from clead.protocols.transfer import Transfer, same_images
from clead.sources import Sources


@dataclass(frozen=True, eq=False)
class Session:
    """One command: what it asks for, and everything it was given.

    Attributes:
        arguments: the command line.
        models: all of them, in order.
        sources: the data sets that are loaded already.
    """

    arguments: argparse.Namespace
    models: list[Opened]
    sources: Sources = field(default_factory=Sources)

    def radii(self, opened: Opened) -> Sequence[float]:
        """``--eps``, or those of the run."""
        return self.arguments.eps or opened.config.evaluation.eps

    @cached_property
    def transfer(self) -> Transfer:
        """The adversarial images of all models."""
        spec = find_attack("pgd20", norm=self.arguments.norm, steps=self.arguments.steps)
        return Transfer([opened.subject for opened in self.models], spec)


def open_all(arguments: argparse.Namespace, sources: Sources) -> list[Opened]:
    """Every model that is to be evaluated, read and checked before the first attack."""
    paths: list[Path] = []
    for path in arguments.models:
        paths.append(path)
        if arguments.comparisons:
            compared = (path / "comparisons" / name for name in get_args(Comparison))
            paths += [folder for folder in compared if folder.is_dir()]
    runs = all(path.is_dir() for path in paths) and not any(is_outside(path, arguments) for path in paths)
    if arguments.data is not None and runs:
        raise UserError(f"--data is for models from outside, got {arguments.data}; a run is evaluated on its own data")
    models: dict[str, Opened] = {}
    for path in {path.resolve(): path for path in paths}.values():
        outside = is_outside(path, arguments)
        opened = open_outside(path, arguments) if outside else open_model(path, arguments, sources)
        name = opened.subject.key["run"]
        if name in models:
            raise UserError(f"{path}: expected a name of its own, but {models[name].subject.name} is {name!r} too")
        models[name] = opened
    return list(models.values())


def attacks(session: Session, opened: Opened) -> Iterator[Row]:
    """Clean accuracy and the attacks of the command line."""
    yield from robustness(opened.subject, chosen_attacks(opened.config, session.arguments), session.radii(opened))


def transfer(session: Session, opened: Opened) -> Iterator[Row]:
    """PGD-20 made on each model, shown to this one."""
    for eps in session.radii(opened):
        yield from session.transfer.rows(opened.subject, eps)


def corruptions(session: Session, opened: Opened) -> Iterator[Row]:
    """The official files of ``--corruptions``, or our own generator."""
    arguments = session.arguments
    yield from corruption_rows(opened.subject, arguments.corruption_types, arguments.severity, arguments.corruptions)


def sweep_eps(session: Session, opened: Opened) -> Iterator[Row]:
    """PGD-20 at the radii of ``--eps``, by default 1 to 32/255 in linf; the clean accuracy is that at radius 0."""
    arguments = session.arguments
    yield outcome_row(opened.subject, "clean", clean_outcome(opened.subject))
    yield from _swept(opened, eps_cases(arguments.norm, arguments.eps or RADII))


def sweep_steps(session: Session, opened: Opened) -> Iterator[Row]:
    """PGD with 0 to 100 steps, at every radius."""
    for eps in session.radii(opened):
        yield from _swept(opened, steps_cases(session.arguments.norm, eps))


def _swept(opened: Opened, cases: list[tuple[AttackSpec, float]]) -> Iterator[Row]:
    """The rows of a sweep, except those that are in the table already and would leave it as rows of a sweep."""
    run = opened.only(opened.subject.key["run"])
    found = read_results(opened.folders[0] / "results.json")
    found = found if run is None else [renamed(row, run) for row in found]
    table = {row_key(row) for row in found if "sweep" not in (row.get("flags") or ())}
    yield from (row for row in sweep(opened.subject, cases) if row_key(row) not in table)


def sanity_checks(session: Session, opened: Opened) -> Iterator[Check]:
    """A few looks at the model, and with ``--sanity`` the attacks that tell masked gradients, at the largest radius."""
    if not opened.classifies:
        return
    yield from quick_checks(opened.subject)
    if session.arguments.sanity:
        name = opened.subject.key["run"]
        others = [other.subject for other in session.models if other.classifies and other.subject.key["run"] != name]
        same = [other for other in others if same_images(other, opened.subject)]
        yield from thorough_checks(opened.subject, session.arguments.norm, max(session.radii(opened)), same)


def neighbours(session: Session, opened: Opened) -> Iterator[Row]:
    """Weighted nearest neighbours among the training images, on every encoding there is."""
    model, common = _encoder(opened)
    for on in _encodings(opened):
        row = knn(model, config=opened.config.knn, on=on, impl=opened.subject.impl, **common)
        yield _flagged(row, opened)


def regressions(session: Session, opened: Opened) -> Iterator[Row]:
    """A logistic regression on every encoding there is."""
    model, common = _encoder(opened)
    config, seed = opened.config.logistic_regression, opened.subject.seed
    for on in _encodings(opened):
        yield _flagged(logistic_regression(model, config=config, on=on, seed=seed, **common), opened)


def _flagged(row: Row, opened: Opened) -> Row:
    """With the flags of the model, less what was said of its classifier alone."""
    flags = [flag for flag in opened.subject.flags if flag != "selected_on_test"]
    return {
        **row,
        "flags": flags + (find_method(opened.method)(opened.config).flags(row["protocol"]) if opened.run else []),
    }


def _encoder(opened: Opened) -> tuple[Model, dict[str, Any]]:
    """The model, and what the protocols on its encodings share."""
    if not isinstance(opened.model, Model):
        raise UserError("knn and logistic_regression need features: a run, or a file in an official format")
    key = opened.subject.key
    named = {name: key[name] for name in ("run", "model", "dataset", "split")}
    test = opened.subject.test.select(opened.subject.samples)
    return opened.model, {"train": opened.splits.train, "test": test, "branch": key["bn_branch"], "key": named}


def _encodings(opened: Opened) -> list[Encoding]:
    return [name for name in get_args(Encoding) if name in opened.subject.classifier.encodings]


PROTOCOLS: dict[str, Callable[[Session, Opened], Iterator[Row]]] = {
    "attacks": attacks,
    "transfer": transfer,
    "corruptions": corruptions,
    "sweep_eps": sweep_eps,
    "sweep_steps": sweep_steps,
    "knn": neighbours,
    "logistic_regression": regressions,
    "metrics": lambda session, opened: encoding_measures(opened),
}


def chosen_attacks(config: TrainConfig, arguments: argparse.Namespace) -> list[AttackSpec]:
    """What ``--attacks`` names; by default the run's own attacks (PGD-20 off linf) and AutoAttack where it is there."""
    names = arguments.attacks
    if names is None:
        names = [*(config.evaluation.attacks if arguments.norm == "linf" else ["pgd20"])]
        names += ["autoattack"] if autoattack_available() else []
    return find_attacks(names, norm=arguments.norm, steps=arguments.steps, restarts=arguments.restarts)
