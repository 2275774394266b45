"""The fine-tuning protocols: a classifier on a pre-trained encoder, trained by the command that then evaluates it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clead.cli import config_values, with_flags
from clead.config import CLASSIFIER_STAGES, Stage, TrainConfig
from clead.engine.files import read_json, write_json
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.evaluate.models import Opened, classifier_of, subject_of
from clead.evaluate.session import Session
from clead.loading import load
from clead.methods import find_method
from clead.models import Model
from clead.stages import fit_on, meta_of

SCHEMA = 1


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without the settings of the stages, such as ``--adv-finetune.epochs 5``; and those."""
    parts: tuple[list[str], list[str]] = ([], [])
    of_stage = False
    for word in argv:
        if word.startswith("--"):
            name, dot, _ = word[2:].partition(".")
            of_stage = bool(dot) and name.replace("-", "_") in CLASSIFIER_STAGES
        parts[of_stage].append(word)
    return parts


def settings_of(session: Session, opened: Opened) -> TrainConfig:
    """What the model was trained with, with the data folder, seed and stage settings of the command line.

    Raises:
        UserError: a setting is impossible, or would put rows into a run's own table that are not of its own settings.
    """
    arguments, config = session.arguments, replace(opened.config, download=False, seed=opened.subject.seed)
    if opened.run is None:
        config = replace(config, image_size=arguments.image_size)
    if arguments.data_dir:
        moved: Any = {name: replace(config.finetuning(name), data_dir=None) for name in CLASSIFIER_STAGES}
        config = replace(config, data_dir=arguments.data_dir, **moved)
    if not arguments.stage_flags:
        return config
    asked = with_flags(config, arguments.stage_flags, "python -m clead.evaluate RUN")
    for stage in CLASSIFIER_STAGES if opened.whole and arguments.out is None else ():
        own, other = (replace(it.finetuning(stage), data=None, data_dir=None) for it in (config, asked))
        if own != other:
            raise UserError(f"{opened.run}: its table is of its own settings of {stage}; others need --out")
    return asked


def finetuned(session: Session, opened: Opened, stage: Stage, progress: Progress) -> Opened:
    """The model with a classifier, trained by ``stage`` on its pre-trained encoder, beside the data of that stage.

    A run that did the same stage with the same settings is not trained again. Otherwise a folder in ``finetuned``
    beside the rows keeps checkpoints and metrics: the same command continues there, another encoder or setting starts
    anew. Rows of another classifier than the model's own for that stage say so, see ``_protocol``.

    Raises:
        UserError: the model has no encoder, or the settings do not fit it or the data.
    """
    if not isinstance(opened.model, Model):
        raise UserError(f"{stage} needs an encoder: a run, or a file in an official format")
    config = settings_of(session, opened)
    settings, device = config.finetuning(stage), torch.device(session.arguments.device)
    splits = session.sources.of(config, stage).to(device)
    default = config.encoder.bn.evaluation_branch if opened.run is not None else opened.subject.key["bn_branch"]
    branch = settings.branch or default
    branches = opened.model.encoder.bn_config.branches
    if branch not in branches:
        raise UserError(f"{stage}.branch must be of {', '.join(branches)}, got {branch!r}")
    method = None if opened.run is None else find_method(opened.method)(config)
    dataset = settings.data or config.data
    on_test = config.paper_compat and method is not None and stage in method.selected_on_test
    protocol: str = stage
    if opened.whole and opened.run is not None and _did(opened.run, stage, config, opened.config):
        model = load(opened.run, stage=stage).to(device)
    else:
        protocol = _protocol(opened, stage, dataset, branch)
        model = load(opened.run, stage="pretrain").to(device) if opened.whole and opened.run else deepcopy(opened.model)
        meta: dict[str, object] = {"format": opened.method}
        if opened.run is not None:
            meta = meta_of(opened.method, config, branch, session.sources.source(config))
        folder = opened.folders[0] / "finetuned" / _folder_name(opened, stage, dataset)
        with _claimed(folder, model, stage, config) as run:
            if opened.run is not None:  # then it can be loaded, exported and resumed like any other run
                own: Any = replace(config, stages=(stage, "evaluate"), compare=())
                run.write_config(opened.method, "finetuned", config_values(own))
            fit_on(model, stage, config, splits, branch, run, progress, meta, on_test=on_test)
            run.finish_stage(stage)
    subject = subject_of(
        classifier_of(model, branch, config),
        branch,
        splits.test,
        config,
        name=opened.subject.name,
        key={
            "run": opened.subject.key["run"],
            "model": opened.subject.key["model"],
            "protocol": protocol,
            "dataset": dataset,
        },
        samples=session.arguments.samples,
        batch_size=session.arguments.batch_size,
        flags=() if method is None else method.flags(stage),
    )
    return replace(opened, subject=subject, model=model, config=config, splits=splits)


def _did(run: Path, stage: Stage, config: TrainConfig, own: TrainConfig) -> bool:
    """Whether the run finished ``stage`` with these settings, wherever the data are."""
    asked, done = (
        (replace(settings, data=settings.data or it.data, data_dir=None), it.seed)
        for it, settings in ((config, config.finetuning(stage)), (own, own.finetuning(stage)))
    )
    return stage in RunFolder(run).stages and asked == done


def _protocol(opened: Opened, stage: Stage, dataset: str, branch: str) -> str:
    """What the rows of a new classifier are called: ``stage``, or ``<stage>_refitted`` where that is the model's own.

    In a run's own table nothing but the seed can differ, which the rows say.
    """
    if opened.whole and not opened.shared:
        return stage
    if opened.run is not None and opened.whole:
        of_stage = opened.config.finetuning(stage).data or opened.config.data
        own = stage in RunFolder(opened.run).stages and of_stage == dataset
    else:
        key = opened.subject.key
        own = (stage, dataset, branch) == (key["protocol"], key["dataset"], key["bn_branch"])
    return f"{stage}_refitted" if own else stage


def _folder_name(opened: Opened, stage: Stage, dataset: str) -> str:
    return re.sub(r"[^\w.-]+", "_", f"{opened.subject.key['run']}-{stage}-{dataset}")


def _claimed(folder: Path, model: Model, stage: Stage, config: TrainConfig) -> RunFolder:
    """The folder of a fine-tuning: emptied unless it is of the same encoder, stage and settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    settings = config_values(config)
    kept = {name: settings[name] for name in (stage, "data", "seed")}
    asked = {"schema": SCHEMA, "stage": stage, "settings": kept, "encoder": digest.hexdigest()}
    file = folder / "finetune.json"
    same = file.is_file() and read_json(file, schema=SCHEMA) == asked
    run = RunFolder.create(folder, resume=True, overwrite=folder.is_dir() and not same)
    write_json(file, asked)
    return run
