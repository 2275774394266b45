"""The models of an evaluation: read from disk, checked, and put beside their data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from clead.cli import read_config
from clead.config import CLASSIFIER_STAGES, Comparison, TrainConfig
from clead.data import Dataset, Splits
from clead.engine import checkpoint
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.loading import load_checkpoint
from clead.methods import find_method
from clead.models import Model
from clead.protocols.subject import Classifier, Subject
from clead.sources import Sources

NEED_CLASSIFIER = {"attacks", "transfer", "corruptions", "sweep_eps", "sweep_steps"}
"""The protocols that look at the classifier that the model came with."""


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
        run: the run folder it is from; None for a model from outside.
        whole: the run was named, not one of its checkpoints.
        shared: rows of other models go there too (``--out``).
    """

    subject: Subject
    model: nn.Module
    method: str
    config: TrainConfig
    splits: Splits
    folders: tuple[Path, ...]
    run: Path | None = None
    whole: bool = False
    shared: bool = False

    @property
    def classifies(self) -> bool:
        """Whether it gives logits; a model of the pre-training alone may not."""
        return not isinstance(self.model, Model) or "classifier" in self.model.heads

    def only(self, run: str) -> str | None:
        """``run``, if all rows where its rows go are its own, whatever it was called when they were written."""
        return None if self.shared else run


def open_model(path: Path, arguments: argparse.Namespace, sources: Sources) -> Opened:
    """The model of a run folder (its last stage, or ``--stage``) or of one checkpoint inside one."""
    single = (path / "meta.json").is_file()
    run = path.resolve().parent.parent if single else path
    method, _, config = read_config(run / "config.json")
    found = path if single else checkpoint.latest(run / "checkpoints", arguments.stage)
    if found is None:
        of = f" of {arguments.stage}" if arguments.stage else ""
        raise UserError(f"{run / 'checkpoints'}: expected a checkpoint{of}, found none")
    stage, _, step = found.resolve().name.rpartition("-")
    if not single and stage not in RunFolder(run).stages:  # its rows would pass for those of the finished model
        raise UserError(f"{run}: the stage {stage} is not finished; finish it with --resume, or name {found}")
    device = torch.device(arguments.device)
    model = load_checkpoint(found).to(device)
    if "classifier" not in model.heads and set(arguments.protocols) & NEED_CLASSIFIER:
        raise UserError(f"{found}: expected a checkpoint with a classifier, found one of the stage {stage}")
    fitting = [name for name in CLASSIFIER_STAGES if name in arguments.protocols]
    if fitting and not single and arguments.stage not in (None, "pretrain"):
        raise UserError(f"{path}: {fitting[0]} begins with the pre-training; name the checkpoint to begin with another")
    labelled = find_method(method).labelled
    dataset, splits = _data(config, stage, arguments, sources)
    splits = splits.to(device)
    protocol = "end_to_end" if labelled and stage == "pretrain" else stage
    compared = run.resolve().parent.name == "comparisons" and run.resolve().name in get_args(Comparison)
    name = f"{run.resolve().name}/{stage}-{int(step)}" if single else run.resolve().name
    subject = subject_of(
        classifier_of(model, model.evaluation_branch, config),
        model.evaluation_branch,
        splits.test,
        config if arguments.seed is None else replace(config, seed=arguments.seed),
        name=str(path),
        key={
            "run": name,
            "model": run.resolve().name if compared else "trained",
            "protocol": protocol,
            "dataset": dataset,
        },
        samples=arguments.samples,
        batch_size=arguments.batch_size,
        flags=find_method(method)(config).flags(protocol),
    )
    shared = arguments.out is not None
    if shared:
        folders = [arguments.out]
    elif single:
        folders = [run / "evaluations" / found.resolve().name]
    else:
        folders = [run, *([run.resolve().parent.parent] if compared else [])]
    return Opened(subject, model, method, config, splits, tuple(folders), run, whole=not single, shared=shared)


def classifier_of(model: Model, branch: str, config: TrainConfig) -> Classifier:
    """The classifier of a model through the batch-norm branch ``branch``, with the temperature of its training."""
    return Classifier.of(model, branch, getattr(config, "temperature", 0.5))


def subject_of(
    classifier: Classifier,
    branch: str | None,
    test: Dataset,
    config: TrainConfig,
    *,
    name: str,
    key: dict[str, Any],
    samples: int | None,
    batch_size: int,
    flags: Sequence[str] = (),
) -> Subject:
    """What the protocols look at.

    Args:
        classifier: of the model.
        branch: its batch-norm branch; None where that has no meaning.
        test: the images, of which ``first_samples`` count.
        config: what it was trained with; its seed is that of the random starts.
        name: for people.
        key: what its rows share: run, model, protocol, dataset.
        samples: how many images; None for all.
        batch_size: images attacked at once.
        flags: what every row must say.
    """
    fixed = {"bn_branch": branch, "split": "test", "seed": config.seed, "dtype": "float32"}
    return Subject(
        name,
        classifier,
        test,
        first_samples(test, samples),
        {**key, **fixed},
        config.seed,
        config.impl,
        batch_size=batch_size,
        suspicions=tuple(flags),
    )


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
