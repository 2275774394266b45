"""The stages of a run that train: the pre-training, and the classifiers on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clead.augment import Augmentation
from clead.cli import Plan
from clead.config import Stage, TrainConfig
from clead.data import Dataset, Splits
from clead.engine import checkpoint
from clead.engine.loop import Fit, Unlabeled, fit
from clead.engine.profile import Profile
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.loading import InputSpec, load, model_meta
from clead.methods import Method
from clead.models import Model
from clead.protocols import fine_tuning, knn
from clead.sources import Sources

PROFILED: tuple[tuple[type, str, str], ...] = (
    (Augmentation, "__call__", "augmentation"),
    *((Method, name, "attack") for name in ("perturb", "constant")),
    *((Model, name, "forward") for name in ("features", "project", "classify")),
)
"""Functions whose time a profile tells apart, and what it calls them."""


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


def pretraining(session: Session, model: Model) -> Fit:
    """Encoder and heads, to be trained with the method's loss."""
    config, train, other = session.config, session.splits.train, session.unlabeled
    if config.speed.channels_last:
        module: Any = model  # torch leaves this form of ``to`` untyped
        module.to(memory_format=torch.channels_last)
        model.encoder.by_rule = False
    computing = model.computing_in(config.speed.compute_dtype, config.cache_batch or None)
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
        accumulate=config.accumulate,
        profile=Profile(session.plan.profile, session.folder.path / "profile", PROFILED, session.progress.note),
        on_nonfinite=config.on_nonfinite,
        meta=session.meta,
        method=session.method,
        unlabeled=None if other is None else Unlabeled(other.batch, len(other)),
        prefetch=config.prefetch if any(part.remote for part in (train, other) if part) else 0,
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
    config = session.config
    branch = config.finetuning(stage).branch or session.branch
    fit_on(
        session.trained("pretrain"),
        stage,
        config,
        session.sources.of(config, stage).to(session.device, config.residence),
        branch,
        session.folder,
        session.progress,
        meta_of(session.plan.method, config, branch, session.splits),
        on_test=session.selected_on_test(stage),
    )


def meta_of(method: str, config: TrainConfig, branch: str, pretrained_on: Splits) -> dict[str, object]:
    """What the checkpoint of a classifier says of its model, which is evaluated on ``branch``."""
    bn = replace(config.encoder.bn, evaluation_branch=branch)
    evaluated = replace(config, encoder=replace(config.encoder, bn=bn))
    return model_meta(method, evaluated, InputSpec.of(pretrained_on))


def fit_on(
    model: Model,
    stage: Stage,
    config: TrainConfig,
    splits: Splits,
    branch: str,
    folder: RunFolder,
    progress: Progress,
    meta: dict[str, object],
    *,
    on_test: bool,
) -> None:
    """Give ``model`` the classifier of one of CLASSIFIER_STAGES; checkpoints and metrics go into ``folder``.

    Args as in ``classification``; a stage that ``folder`` has begun is continued.
    """
    fit(classification(model, stage, config, splits, branch, meta, on_test=on_test), folder, progress)


def classification(
    model: Model,
    stage: Stage,
    config: TrainConfig,
    splits: Splits,
    branch: str,
    meta: dict[str, object],
    *,
    on_test: bool = False,
    features: Tensor | None = None,
) -> Fit:
    """The classifier of one of CLASSIFIER_STAGES, to be trained.

    Args:
        model: its encoder is pre-trained; changed in place.
        stage: which one.
        config: with the settings of the stage.
        splits: the stage's data, on the device of the model.
        branch: batch-norm branch.
        meta: what a checkpoint says of the encoder.
        on_test: choose the epoch on the test split, see ``Method.selected_on_test``.
        features: see ``fine_tuning``.
    """
    settings = config.finetuning(stage)
    return fine_tuning(
        model,
        stage,
        settings,
        splits,
        branch=branch,
        seed=config.seed,
        impl=config.impl,
        # A linear classifier on clean images takes seconds: only its end is kept.
        checkpoint_every=max(1, settings.epochs) if stage == "linear_eval" else config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        on_nonfinite=config.on_nonfinite,
        prefetch=config.prefetch,
        on_test=on_test,
        fold=config.speed.fold,
        meta=meta | {"classifier": {"protocol": stage, "dataset": settings.data or config.data}},
        features=features,
    )
