"""The models of an evaluation: read from disk, checked, and put beside their data."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clead.cli import read_config
from clead.config import CLASSIFIER_STAGES, TrainConfig
from clead.data import Dataset, Splits
from clead.engine import checkpoint
from clead.errors import UserError
from clead.loading import load_checkpoint
from clead.methods import find_method
from clead.protocols.subject import Classifier, Subject
from clead.sources import Sources

LABELS = ("undefended", "random")


@dataclass(frozen=True, eq=False)
class Opened:
    """A model read from disk, and where its rows go.

    Attributes:
        subject: what the protocols look at.
        model: the whole model.
        method: key of METHODS, or the format of a model from outside.
        config: what it was trained with.
        splits: its data set.
        folders: whose results.json gets the rows.
    """

    subject: Subject
    model: nn.Module
    method: str
    config: TrainConfig
    splits: Splits
    folders: tuple[Path, ...]


def open_model(path: Path, arguments: argparse.Namespace, sources: Sources) -> Opened:
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
    dataset, splits = _data(config, stage, arguments, sources)
    splits = splits.to(device)
    compared = run.resolve().parent.name == "comparisons" and run.resolve().name in LABELS
    name = f"{run.resolve().name}/{stage}-{int(step)}" if single else run.resolve().name
    seed = config.seed if arguments.seed is None else arguments.seed
    key = {
        "run": name,
        "model": run.resolve().name if compared else "trained",
        "protocol": "end_to_end" if labelled and stage == "pretrain" else stage,
        "bn_branch": model.evaluation_branch,
        "dataset": dataset,
        "split": "test",
        "seed": seed,
        "dtype": "float32",
    }
    subject = Subject(
        str(path),
        Classifier.of(model, model.evaluation_branch, getattr(config, "temperature", 0.5)),
        splits.test,
        first_samples(splits.test, arguments.samples),
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


def first_samples(test: Dataset, count: int | None) -> Tensor:
    """The indices of the first ``count`` images (None: all), or where they stand class by class of as many spread out.

    The first images of a folder, and of ImageNet, would all be of its first classes.
    """
    every = torch.arange(len(test), device=test.labels.device)
    if count is None or count >= len(test):
        return every
    sorted_by_class = bool((test.labels.diff() >= 0).all())
    return every[:count] * len(test) // count if sorted_by_class else every[:count]


def _data(config: TrainConfig, stage: str, arguments: argparse.Namespace, sources: Sources) -> tuple[str, Splits]:
    """The data set of a stage: its name, and its images as the stage saw them."""
    config = replace(config, download=False, data_dir=arguments.data_dir or config.data_dir)
    for name in CLASSIFIER_STAGES:
        if name == stage:
            settings = config.finetuning(name)
            if arguments.data_dir:
                moved: Any = {name: replace(settings, data_dir=None)}
                config = replace(config, **moved)
            return settings.data or config.data, sources.of(config, name)
    return config.data, sources.source(config)
