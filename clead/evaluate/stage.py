"""The stage ``evaluate`` of a run: what ``clead.train`` measures of the models it trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from safetensors.torch import save as save_tensors

from clead.config import CLASSIFIER_STAGES
from clead.data import Dataset
from clead.engine.files import write_atomic
from clead.engine.progress import Stage
from clead.engine.results import Row, row_key
from clead.errors import UserError
from clead.evaluate.models import classifier_of, first_samples, subject_of
from clead.figures.style import format_eps
from clead.models import Model
from clead.protocols.catalogue import find_attack, find_attacks
from clead.protocols.knn import knn
from clead.protocols.logistic_regression import logistic_regression
from clead.protocols.robustness import attack_all, robustness
from clead.protocols.sanity import quick_checks
from clead.protocols.subject import Subject
from clead.protocols.sweeps import eps_cases, sweep
from clead.stages import Session

_EXAMPLES = 8


def evaluate(session: Session) -> None:
    """Clean accuracy and every attack of the configuration on every classifier, and the probes, on the test split."""
    config, folder = session.config, session.folder
    found = list(subjects(session))
    if not found and not (config.knn.on or config.logistic_regression.on):
        raise UserError(f"{folder.path}: evaluate needs a classifier; run the stage linear_eval first")
    probe(session)
    there = {_identity(row) for row in folder.results}
    todo = [(subject, missing) for subject in found if (missing := _missing(session, subject, there))]
    with _display(session, [len(subject.samples) for subject, missing in todo for _ in missing]) as (on_batch, on_row):
        for subject, missing in todo:
            checked = _checked(session, replace(subject, on_batch=on_batch))
            several = f" {subject.key['protocol']}" if len(found) > 1 else ""
            for row in _rows(session, checked, missing):
                on_row()
                _report(session, row, several)
    if todo:
        save_examples(session, todo[-1][0])


def subjects(session: Session) -> Iterator[Subject]:
    """The classifiers of the finished stages; where there is none, that of the pre-training if it has one."""
    config = session.config
    stages = [stage for stage in CLASSIFIER_STAGES if stage in session.folder.stages]
    for stage in stages:
        settings, test = config.finetuning(stage), session.sources.of(config, stage).test.to(session.device)
        model = session.trained(stage)
        yield _subject(session, model, settings.branch or session.branch, test, stage, settings.data or config.data)
    if not stages and "classifier" in (model := session.trained("pretrain")).heads:
        yield _subject(session, model, session.branch, session.splits.test, "end_to_end", config.data)


def _subject(session: Session, model: Model, branch: str, test: Dataset, protocol: str, dataset: str) -> Subject:
    config, folder = session.config, session.folder
    return subject_of(
        classifier_of(model, branch, config),
        branch,
        test,
        config,
        name=str(folder.path),
        key={"run": folder.name, "model": session.label, "protocol": protocol, "dataset": dataset},
        samples=config.evaluation.samples,
        batch_size=config.evaluation.batch_size,
    )


def _missing(session: Session, subject: Subject, there: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """The identities of the rows that are not there yet."""
    config = session.config.evaluation
    table = [spec.key(eps) for spec in find_attacks(config.attacks) for eps in config.eps]
    swept = [{**spec.key(eps), "flags": ["sweep"]} for spec, eps in eps_cases("linf", config.swept)]
    size = len(subject.samples)
    wanted = [_identity({**subject.key, "samples": size, **key}) for key in ({}, *table, *swept)]
    return set(wanted) - there


def _rows(session: Session, subject: Subject, missing: set[tuple[Any, ...]]) -> Iterator[Row]:
    """The missing rows; a sweep, whose points build on each other, is measured as a whole."""
    config, size = session.config.evaluation, len(subject.samples)

    def done(key: dict[str, Any]) -> bool:
        return _identity({**key, "samples": size}) not in missing

    yield from robustness(subject, find_attacks(config.attacks), config.eps, done)
    cases = eps_cases("linf", config.swept)
    swept = ({**subject.key, **spec.key(eps), "samples": size, "flags": ["sweep"]} for spec, eps in cases)
    if any(_identity(row) in missing for row in swept):
        yield from sweep(subject, cases)


def _checked(session: Session, subject: Subject) -> Subject:
    """With the suspicions that a few looks at the model give rise to, which are said aloud."""
    found = [check for check in quick_checks(subject) if check.found]
    for check in found:
        session.progress.note(f"evaluate {session.label:<10} RED FLAG {check.flag}: {check.detail}")
    return replace(subject, suspicions=(*subject.suspicions, *(check.flag for check in found)))


def probe(session: Session) -> None:
    """Nearest neighbours and logistic regression on the pre-trained encoder, where they are asked for."""
    config = session.config
    if not (config.knn.on or config.logistic_regression.on):
        return
    train, test = session.splits.train, session.splits.test
    test = test.select(first_samples(test, config.evaluation.samples))
    model = session.trained("pretrain")
    key = {"run": session.folder.name, "model": session.label, "dataset": config.data, "split": "test"}
    for on in config.knn.on:
        row = knn(model, train, test, config.knn, on, branch=session.branch, impl=config.impl, key=key)
        _report(session, row, f" {row['protocol']}")
    for on in config.logistic_regression.on:
        there = {(row["protocol"], row["samples"], row["model"]) for row in session.folder.results}
        if (f"logistic_regression_{on}", len(test), session.label) in there:
            continue  # the neighbours take a moment, this minutes
        row = logistic_regression(
            model,
            train,
            test,
            config.logistic_regression,
            on,
            branch=session.branch,
            seed=config.seed,
            key=key,
            on_test=session.selected_on_test("logistic_regression"),
        )
        _report(session, row, f" {row['protocol']}")


def _report(session: Session, row: Row, protocol: str) -> None:
    """Store a row and say so."""
    flags = session.method.flags(row["protocol"])
    session.folder.add_results([{**row, "flags": [*row["flags"], *flags]}])
    at = "" if row["eps"] is None else f" eps {format_eps(row['eps'])}"
    remark = ", of the epoch that is best on the test split (paper_compat)" if flags else ""
    session.progress.note(f"evaluate {session.label:<10}{protocol} {row['name']}{at}: {row['accuracy']:.1%}{remark}")


def _identity(row: Row) -> tuple[Any, ...]:
    """What a row that is there already must agree in to be kept when an evaluation is resumed."""
    return (*row_key(row), row.get("samples"), "sweep" in (row.get("flags") or ()))


class _Bar:
    """Moves the live display: a row counts as many steps as it has images, some of which an attack may leave out."""

    def __init__(self, display: Stage, sizes: Sequence[int]) -> None:
        self._display, self._ends = display, list(itertools.accumulate(sizes))
        self._row = self._step = 0

    def on_batch(self, images: int) -> None:
        self._show(min(self._step + images, self._ends[self._row]), images)

    def on_row(self) -> None:
        self._show(self._ends[self._row], 0)
        self._row = min(self._row + 1, len(self._ends) - 1)

    def _show(self, step: int, images: int) -> None:
        self._step = step
        self._display.update(epoch=self._row + 1, step=step, loss=None, images=images)


@contextmanager
def _display(session: Session, sizes: Sequence[int]) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """What to call after every attacked batch and after every row; nothing happens where no one watches."""
    if not session.progress.live or not sizes:
        yield (lambda images: None), (lambda: None)
        return
    with session.progress.stage("evaluate", total_steps=sum(sizes), epochs=len(sizes)) as display:
        bar = _Bar(display, sizes)
        yield bar.on_batch, bar.on_row


def save_examples(session: Session, subject: Subject) -> None:
    """``examples.safetensors``: eight test images, their PGD-20 versions and both predictions, for the image grid."""
    spec, eps = find_attack("pgd20"), max(session.config.evaluation.eps, default=0.0)
    few = replace(subject, samples=subject.samples[:_EXAMPLES])
    x, x_adv = few.images, attack_all(few, spec, eps, skip=False).x_adv
    predictions = [few.classifier.predict(images).argmax(1) for images in (x, x_adv)]
    names = ("clean", "adversarial", "labels", "clean_prediction", "adversarial_prediction")
    tensors = {
        name: value.cpu().contiguous() for name, value in zip(names, (x, x_adv, few.labels, *predictions), strict=True)
    }
    file = session.folder.path / "examples.safetensors"
    write_atomic(file, save_tensors(tensors, {"attack": spec.name, "eps": repr(eps), "model": session.label}))
