"""The stages of a run: pre-training, the classifiers on it, and what is measured of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from clead.cli import Plan
from clead.config import CLASSIFIER_STAGES, Stage, TrainConfig
from clead.data import Dataset, Splits
from clead.engine import checkpoint
from clead.engine.files import write_atomic
from clead.engine.loop import Fit, Unlabeled, fit
from clead.engine.progress import Progress
from clead.engine.results import Row, row_key
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.loading import InputSpec, load, model_meta
from clead.methods import Method
from clead.models import Model
from clead.protocols import attack_suite, finetune, knn, logistic_regression, parse_attack
from clead.protocols.attack_suite import adversarial_examples
from clead.sources import Sources


@dataclass(frozen=True)
class Session:
    """A run in progress: everything its stages need."""

    plan: Plan
    label: str
    method: Method[Any]
    sources: Sources
    splits: Splits
    unlabeled: Dataset | None
    folder: RunFolder
    progress: Progress
    device: torch.device

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.plan.config

    @property
    def branch(self) -> str:
        """The batch-norm branch of evaluation."""
        return self.config.encoder.bn.evaluation_branch

    def selected_on_test(self, what: str) -> bool:
        """Whether the test split chooses the epoch of ``what``, a stage or ``logistic_regression``."""
        return self.config.paper_compat and what in self.method.selected_on_test

    @property
    def meta(self) -> dict[str, object]:
        """What a checkpoint says of the model."""
        return model_meta(self.plan.method, self.config, InputSpec.of(self.splits))

    def trained(self, stage: Stage) -> Model:
        """The model as ``stage`` left it."""
        if checkpoint.latest(self.folder.checkpoints, stage) is None:
            raise UserError(f"{self.folder.path}: expected a checkpoint of {stage}, found none; run that stage first")
        return load(self.folder.path, stage=stage).to(self.device)


@dataclass(frozen=True)
class Subject:
    """A classifier to evaluate.

    Attributes:
        protocol: how it came to be: a classifier stage, or ``end_to_end``.
        model: with a ``classifier``.
        test: the images.
        dataset: name of the data set.
        branch: batch-norm branch.
    """

    protocol: str
    model: Model
    test: Dataset
    dataset: str
    branch: str


def pretraining(session: Session, model: Model) -> Fit:
    """Encoder and heads, to be trained with the method's loss."""
    config, train, other = session.config, session.splits.train, session.unlabeled
    if config.speed.channels_last:
        module: Any = model  # torch leaves this form of ``to`` untyped
        module.to(memory_format=torch.channels_last)
    computing = model.computing_in(config.speed.compute_dtype)
    return Fit(
        stage="pretrain",
        model=model,
        trained=model,
        loss=lambda batch: session.method.training_loss(computing, batch),
        images=train.batch,
        labels=train.labels,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        on_nonfinite=config.on_nonfinite,
        meta=session.meta,
        method=session.method,
        unlabeled=None if other is None else Unlabeled(other.batch, len(other)),
        start_epoch=lambda epoch: session.method.start_epoch(model, train.batch, len(train), epoch),
        score=(lambda: _neighbours(session, model)) if session.selected_on_test("pretrain") else None,
        scored_on="test",
    )


def _neighbours(session: Session, model: Model) -> float:
    """The accuracy of nearest neighbours of the embeddings, on the test split."""
    train, test, config = session.splits.train, session.splits.test, session.config
    row = knn(model, train, test, config.knn, "embeddings", branch=session.branch, impl=config.impl, key={})
    return float(row["accuracy"])


def pretrain(session: Session, model: Model) -> None:
    """Train encoder and heads."""
    fit(pretraining(session, model), session.folder, session.progress)


def fit_classifier(session: Session, stage: Stage) -> None:
    """One of CLASSIFIER_STAGES, from the pre-trained encoder."""
    config, stage_config = session.config, session.config.finetuning(stage)
    branch = stage_config.branch or session.branch
    bn = replace(config.encoder.bn, evaluation_branch=branch)
    evaluated = replace(config, encoder=replace(config.encoder, bn=bn))
    meta = model_meta(session.plan.method, evaluated, InputSpec.of(session.splits))
    finetune(
        session.trained("pretrain"),
        stage,
        stage_config,
        session.sources.of(config, stage).to(session.device),
        branch=branch,
        seed=config.seed,
        impl=config.impl,
        # A linear classifier on clean images takes seconds: only its end is kept.
        checkpoint_every=max(1, stage_config.epochs) if stage == "linear_eval" else config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        on_nonfinite=config.on_nonfinite,
        on_test=session.selected_on_test(stage),
        folder=session.folder,
        progress=session.progress,
        meta=meta | {"classifier": {"protocol": stage, "dataset": stage_config.data or config.data}},
    )


def evaluate(session: Session) -> None:
    """Clean accuracy and every attack of the configuration on every classifier, and the probes, on the test split."""
    config, folder = session.config, session.folder
    found = list(subjects(session))
    if not found and not (config.knn.on or config.logistic_regression.on):
        raise UserError(f"{folder.path}: evaluate needs a classifier; run the stage linear_eval first")
    probe(session)
    there = {_identity(row) for row in folder.results}
    new = None
    with _evaluation_display(session, found) as advance:
        for subject in found:
            rows = attack_suite(
                subject.model,
                subject.test,
                config.evaluation,
                branch=subject.branch,
                seed=config.seed,
                impl=config.impl,
                key={
                    "run": folder.name,
                    "model": session.label,
                    "protocol": subject.protocol,
                    "dataset": subject.dataset,
                    "split": "test",
                },
                done=lambda row: _identity(row) in there,
                on_batch=advance,
            )
            several = f" {subject.protocol}" if len(found) > 1 else ""
            for row in rows:
                new = subject
                _report(session, row, several)
    if new is not None:
        save_examples(session, new)


def subjects(session: Session) -> Iterator[Subject]:
    """The classifiers of the finished stages; where there is none, that of the pre-training if it has one."""
    config, splits = session.config, session.splits
    stages = [stage for stage in CLASSIFIER_STAGES if stage in session.folder.stages]
    for stage in stages:
        stage_config = config.finetuning(stage)
        model, test = session.trained(stage), session.sources.of(config, stage).test.to(session.device)
        yield Subject(stage, model, test, stage_config.data or config.data, stage_config.branch or session.branch)
    if not stages and "classifier" in (model := session.trained("pretrain")).heads:
        yield Subject("end_to_end", model, splits.test, config.data, session.branch)


def probe(session: Session) -> None:
    """Nearest neighbours and logistic regression on the pre-trained encoder, where they are asked for."""
    config = session.config
    if not (config.knn.on or config.logistic_regression.on):
        return
    train, test = session.splits.train, session.splits.test
    test = test.select(torch.arange(len(test), device=session.device)[: config.evaluation.samples])
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
    at = "" if row["eps"] is None else f" eps {row['eps']:.4g}"
    remark = ", of the epoch that is best on the test split (paper_compat)" if flags else ""
    session.progress.note(f"evaluate {session.label:<10}{protocol} {row['name']}{at}: {row['accuracy']:.1%}{remark}")


def _identity(row: Row) -> tuple[Any, ...]:
    """What a row that is there already must agree in to be kept when an evaluation is resumed."""
    return (*row_key(row), row.get("samples"), "sweep" in (row.get("flags") or ()))


@contextmanager
def _evaluation_display(session: Session, found: list[Subject]) -> Iterator[Callable[[int], None]]:
    """A function to call after every attacked batch; on a terminal it moves a bar, elsewhere the rows are enough."""
    if not session.progress.live or not found:
        yield lambda images: None
        return
    config = session.config.evaluation
    rows = 1 + len(config.cases)
    sizes = [min(len(subject.test), config.samples or len(subject.test)) for subject in found]
    total = sum(rows * math.ceil(size / config.batch_size) for size in sizes)
    epochs = rows * len(found)
    with session.progress.stage("evaluate", total_steps=total, epochs=epochs) as display:
        steps = itertools.count(1)

        def advance(images: int) -> None:
            step = next(steps)
            display.update(epoch=math.ceil(step * epochs / total), step=step, loss=None, images=images)

        yield advance


def save_examples(session: Session, subject: Subject) -> None:
    """``examples.safetensors``: eight test images, their PGD-20 versions and both predictions, for the image grid."""
    config, test, model = session.config, subject.test, subject.model
    spec, eps = parse_attack("pgd20"), max(config.evaluation.eps, default=0.0)
    samples = torch.arange(min(8, len(test)), device=session.device)
    x, labels = test.batch(samples), test.labels[samples]
    x_adv = adversarial_examples(
        model, x, labels, samples, spec, eps=eps, branch=subject.branch, seed=config.seed, impl=config.impl
    )
    with torch.no_grad():
        predictions = [model.logits(images, branch=subject.branch).argmax(1) for images in (x, x_adv)]
    names = ("clean", "adversarial", "labels", "clean_prediction", "adversarial_prediction")
    tensors = {
        name: value.cpu().contiguous() for name, value in zip(names, (x, x_adv, labels, *predictions), strict=True)
    }
    file = session.folder.path / "examples.safetensors"
    write_atomic(file, save_tensors(tensors, {"attack": spec.name, "eps": repr(eps), "model": session.label}))
