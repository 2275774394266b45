"""``python -m clead.train METHOD``: pre-train, fit a linear classifier, attack it, and show the table.

Stages and what they leave behind are described in the README ("What a run folder holds").
"""

from __future__ import annotations

from clead.errors import UserError, leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from clead import data, dry_run, report
from clead.augment import find_augmentation
from clead.callbacks import find_callback
from clead.cli import Plan, plans
from clead.config import CLASSIFIER_STAGES, Comparison, TrainConfig, require
from clead.data import Dataset, Splits
from clead.engine import checkpoint
from clead.engine.memory import keep_freed_memory
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.evaluate.stage import evaluate
from clead.loading import InputSpec, build_model, load_features
from clead.methods import METHODS, Method, find_method
from clead.models import Model, initialise
from clead.own_modules import import_own
from clead.protocols import find_attacks
from clead.recipes import default_recipe
from clead.resume import configuration
from clead.rng import Rng
from clead.sources import Sources
from clead.stages import Session, fit_classifier, pretrain
from clead_kernels import dispatch

# The undefended model gets the ce recipe's optimiser and augmentation, and everything else from the run beside it.
_SHARED_WITH_UNDEFENDED = (
    *("data", "data_dir", "image_size", "train_samples", "epochs", "batch_size", "accumulate", "cache_batch", "seed"),
    *("device", "threads", "impl", "speed", "encoder", "evaluation", "checkpoint_every", "checkpoint_minutes"),
    *("on_nonfinite", "deterministic", "residence", "prefetch"),
)


def run(plan: Plan, progress: Progress, *, label: str = "trained", sources: Sources | None = None) -> RunFolder:
    """Do one run, its comparisons included; returns its folder, closed."""
    callbacks = [find_callback(name) for name in plan.callbacks]
    session, model = prepare(plan, progress, label, sources or Sources())
    recipe, values = configuration(plan)  # a refusal leaves a finished run as it is
    with RunFolder.create(plan.out, resume=plan.resume, overwrite=plan.overwrite) as folder:
        folder.observers += callbacks
        folder.write_config(plan.method, recipe, values)
        session = replace(session, folder=folder)
        _run_stages(session, model)
        for name in plan.config.compare:
            _compare(session, name)
    return folder


def prepare(plan: Plan, progress: Progress, label: str, sources: Sources) -> tuple[Session, Model]:
    """Read and check everything a run needs, and initialise its model; nothing is written."""
    config = plan.config
    method = find_method(plan.method)(config)
    expected = f"1 with {plan.method}, whose loss moves the momentum encoder"
    require(method.accumulates or config.accumulate == 1, "accumulate", expected, config.accumulate)
    _check_branches(plan, method)
    _check_selection(plan, method)
    device = _device(config)
    if device.type == "cpu":
        keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    _allow_tf32(config.speed.precision == "tf32")
    _check_impl(method, config, device)
    find_attacks(config.evaluation.attacks)
    if config.stages[0] != "pretrain" and checkpoint.latest(plan.out / "checkpoints") is None:
        raise UserError(f"{plan.out}: the stage {config.stages[0]} needs a checkpoint of an earlier one, found none")
    splits = sources.source(config)
    _check_augmentations(method, config, splits, device)
    _check_data(method, config, splits)
    for stage in CLASSIFIER_STAGES:
        if stage in config.stages:
            sources.of(config, stage)
    unlabeled = _load_unlabeled(method, config, splits)
    spec = InputSpec.of(splits)
    if method.features_run is not None:
        method.features_model = load_features(method.features_run, config, spec).to(device)
    model = build_model(method, spec)
    _check_probes(plan, model)
    initialise(model, config.seed)
    unlabeled = unlabeled and unlabeled.to(device, config.residence)
    splits, folder = splits.to(device, config.residence), RunFolder(plan.out)
    return Session(plan, label, method, sources, splits, unlabeled, folder, progress, device), model


def _allow_tf32(allowed: bool) -> None:
    """Say what a float32 convolution or product on a CUDA device is; torch would round the convolutions' inputs."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def _check_branches(plan: Plan, method: Method[Any]) -> None:
    """Refuse batch-norm branches that no training image ever went through."""
    asked = {"encoder.bn.evaluation_branch": plan.config.encoder.bn.evaluation_branch}
    stages = [stage for stage in CLASSIFIER_STAGES if stage in plan.config.stages]
    asked |= {f"{stage}.branch": plan.config.finetuning(stage).branch or method.trained_branches[0] for stage in stages}
    for name, branch in asked.items():
        if branch not in method.trained_branches:
            trained = " or ".join(dict.fromkeys(method.trained_branches))
            raise UserError(f"{name} must be {trained}, which {plan.method} trains, got {branch!r}")


def _check_augmentations(method: Method[Any], config: TrainConfig, splits: Splits, device: torch.device) -> None:
    """Refuse augmentations that do not fit the data, or that ``--impl`` does not have."""
    names = [config.finetuning(name).augment for name in CLASSIFIER_STAGES if name in config.stages]
    no_images = splits.train.images[:0].to(device, torch.float32)
    for augmentation in (*method.augmentations, *(find_augmentation(name, config.impl) for name in names)):
        augmentation.check_channels(splits.in_channels)
        try:
            augmentation(no_images, Rng.create(config.seed, "augment", torch.arange(0, device=device)))
        except NotImplementedError as error:
            raise UserError(f"--impl {config.impl}: augmentation {augmentation.name!r}: {error}") from error


def _check_data(method: Method[Any], config: TrainConfig, splits: Splits) -> None:
    """Refuse settings that do not fit the data, before the run folder is made."""
    method.check_images(torch.zeros(1, splits.in_channels, *splits.image_size))
    if len(splits.train) < method.min_samples:
        raise UserError(f"these settings need at least {method.min_samples} training images, got {len(splits.train)}")
    if config.batch_size > len(splits.train):
        raise UserError(f"batch_size must be at most the {len(splits.train)} training samples, got {config.batch_size}")
    if method.labelled and bool((splits.train.labels < 0).any()):
        raise UserError(f"data must have a label for every training image with this method, got {config.data!r}")


def _check_selection(plan: Plan, method: Method[Any]) -> None:
    """Refuse to select as an official code did that selects nothing."""
    if plan.config.paper_compat and not method.selected_on_test:
        raise UserError(f"paper_compat must be off with {plan.method}, whose code selects nothing on the test split")


def _check_probes(plan: Plan, model: Model) -> None:
    """Refuse to measure embeddings that the method does not have."""
    probes = {"knn.on": plan.config.knn.on, "logistic_regression.on": plan.config.logistic_regression.on}
    for name, on in probes.items():
        if "embeddings" in on and "projector" not in model.heads:
            raise UserError(f"{name} must be features, as {plan.method} has no projector, got embeddings")


def _load_unlabeled(method: Method[Any], config: TrainConfig, splits: Splits) -> Dataset | None:
    """The images of the second data set, if the method asks for one."""
    if method.unlabeled_data is None:
        return None
    size = splits.image_size[0]
    train = data.load(method.unlabeled_data, config.data_dir, download=config.download, image_size=size).train
    expected, found = splits.train.images.shape[1:], train.images.shape[1:]
    if found != expected:
        raise UserError(f"unlabeled_data must have images of {list(expected)} like {config.data}, got {list(found)}")
    if config.batch_size > len(train):
        raise UserError(f"batch_size must be at most the {len(train)} unlabelled samples, got {config.batch_size}")
    return train


def _run_stages(session: Session, model: Model) -> None:
    for stage in session.config.stages:
        if stage in session.folder.stages and stage != "evaluate":  # evaluate itself skips the rows that are there
            continue
        if stage == "pretrain":
            pretrain(session, model.to(session.device))
        elif stage == "evaluate":
            evaluate(session)
        else:
            fit_classifier(session, stage)
        session.folder.finish_stage(stage)


def _compare(session: Session, name: Comparison) -> None:
    """Train and evaluate a model to compare with, in ``comparisons/<name>``, and copy its rows."""
    config = session.config
    if name == "undefended":
        recipe = default_recipe("ce", config.data)
        values = {field: getattr(config, field) for field in _SHARED_WITH_UNDEFENDED}
        bn = config.encoder.bn  # ce trains the first branch only
        values["encoder"] = replace(config.encoder, bn=replace(bn, evaluation_branch=bn.branches[0]))
        plan = Plan(recipe.method, recipe.name, replace(recipe.config, **values), Path(), False, False)
    else:
        plan = replace(session.plan, config=replace(config, epochs=0, compare=()), callbacks=(), profile=0)
    out = session.folder.path / "comparisons" / name
    out.parent.mkdir(exist_ok=True)
    plan = replace(plan, out=out, resume=True, overwrite=False)
    if "pretrain" not in RunFolder(out).stages:
        session.progress.note(f"beside it, the {name} model: {out}")
    folder = run(plan, session.progress, label=name, sources=session.sources)
    session.folder.add_results([{**row, "run": session.folder.name} for row in folder.results])


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device and a CUDA build of torch; found none")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _check_impl(method: Method[Any], config: TrainConfig, device: torch.device) -> None:
    """Refuse an ``--impl`` that some operator of the method does not have, before anything is trained."""
    try:
        dispatch.check(
            [*method.ops, "pgd_step_", "random_start_"],
            config.impl,
            device=device.type,
            dtype=torch.float32,
            **method.op_features,
        )
    except NotImplementedError as error:
        raise UserError(f"--impl {config.impl}: {error}") from error


def show(todo: list[Plan], console: Console) -> None:
    """The table, the figures and one line that says where everything is."""
    folders = [plan.out for plan in todo]
    report.show(folders, console, lacks=any("evaluate" in plan.config.stages for plan in todo))
    where = ", ".join(map(str, folders))
    report.emit(console, f"Table, figures and checkpoints are in {where}; next: {_next_step(todo[-1])}")


def _next_step(plan: Plan) -> str:
    if plan.config.data == "digits":
        return f"python -m clead.train {plan.method} --data cifar10 --data-dir DIR"
    return f"python -m clead.export {plan.out} --out encoder.safetensors"


def list_methods(console: Console) -> None:
    """A line for each method: what it does, and its paper."""
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        what = (method.__doc__ or "").partition("\n")[0]
        report.emit(console, f"{name:<{width}}  {what} ({method.paper})")


def main(argv: list[str]) -> None:
    """The command."""
    console = report.output_console()
    import_own(argv)
    if "--list" in argv or argv[:1] in (["--help"], ["-h"]):
        list_methods(console)
        if "--list" not in argv:
            report.emit(console, "", "python -m clead.train METHOD trains one; METHOD --help shows its settings.")
        return
    todo, progress = plans(argv), Progress(console)
    if "--dry-run" in argv:
        for plan in todo:
            session, model = prepare(plan, progress, "trained", Sources())
            dry_run.show(session, model.to(session.device), console)
        return
    for plan in todo:  # all of them before the first is trained
        RunFolder.check(plan.out, resume=plan.resume, overwrite=plan.overwrite)
    for number, plan in enumerate(todo, start=1):
        if len(todo) > 1:
            progress.note(f"run {number} of {len(todo)}: {plan.out}")
        run(plan, progress)
    show(todo, console)


if __name__ == "__main__":
    run_command(main, hint="the same command with --resume continues")
