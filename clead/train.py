"""``python -m clead.train METHOD``: pre-train, fit a linear classifier, attack it, and show the table.

Stages and what they leave behind are described in the README ("What a run folder holds").
"""

from __future__ import annotations

from clead.errors import UserError, leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save as save_tensors

from clead import data, report
from clead.cli import Plan, config_values, plans, read_config
from clead.config import Comparison, TrainConfig
from clead.data import Dataset, Splits
from clead.engine import checkpoint
from clead.engine.files import write_atomic
from clead.engine.loop import Fit, Unlabeled, fit
from clead.engine.progress import Progress
from clead.engine.results import row_key
from clead.engine.run import RunFolder
from clead.loading import InputSpec, build_model, load, model_meta
from clead.methods import METHODS, Method, find_method
from clead.models import Model, initialise
from clead.protocols import attack_suite, linear_eval, parse_attack
from clead.protocols.attack_suite import adversarial_examples
from clead.recipes import find_recipe
from clead_kernels import dispatch

# What may differ between a run folder and the command that resumes it: nothing that changes the weights.
_MAY_CHANGE = {"data_dir", "download", "device", "threads", "stages", "evaluation", "compare", "checkpoint_every"}

# The undefended model gets the ce recipe's optimiser and augmentation, and everything else from the run beside it.
_SHARED_WITH_UNDEFENDED = (
    *("data_dir", "train_samples", "epochs", "batch_size", "seed", "device", "threads", "impl", "encoder"),
    *("evaluation", "checkpoint_every"),
)


@dataclass(frozen=True)
class Session:
    """A run in progress: everything its stages need."""

    plan: Plan
    label: str
    method: Method[Any]
    splits: Splits
    unlabeled: Dataset | None
    folder: RunFolder
    progress: Progress
    device: torch.device
    model: Model

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.plan.config

    @property
    def branch(self) -> str:
        """The batch-norm branch of evaluation."""
        return self.config.encoder.bn.evaluation_branch

    @property
    def meta(self) -> dict[str, object]:
        """What a checkpoint says of the model."""
        return model_meta(self.plan.method, self.config, InputSpec.of(self.splits))


def pretrain(session: Session) -> None:
    """Train encoder and heads with the method's loss."""
    config, train, other = session.config, session.splits.train, session.unlabeled
    task = Fit(
        stage="pretrain",
        model=session.model,
        trained=session.model,
        loss=lambda batch: session.method.training_loss(session.model, batch),
        images=train.batch,
        labels=train.labels,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        meta=session.meta,
        method=session.method,
        unlabeled=None if other is None else Unlabeled(other.batch, len(other)),
        start_epoch=lambda epoch: session.method.start_epoch(session.model, train.batch, len(train), epoch),
    )
    fit(task, session.folder, session.progress)


def fit_classifier(session: Session) -> None:
    """The linear evaluation's classifier."""
    linear_eval(
        session.model,
        session.splits.train,
        session.config.linear_eval,
        branch=session.branch,
        seed=session.config.seed,
        num_classes=session.splits.num_classes,
        folder=session.folder,
        progress=session.progress,
        meta=session.meta,
    )


def evaluate(session: Session) -> None:
    """Clean accuracy and every attack of the configuration, on the test split."""
    config, model, folder = session.config, session.model, session.folder
    if "classifier" not in model.heads:
        raise UserError(f"{session.folder.path}: evaluate needs a classifier; run the stage linear_eval first")
    there = {_identity(row) for row in session.folder.results}
    with _evaluation_display(session) as advance:
        rows = attack_suite(
            model,
            session.splits.test,
            config.evaluation,
            branch=session.branch,
            seed=config.seed,
            impl=config.impl,
            key={
                "run": session.folder.name,
                "model": session.label,
                "protocol": "linear_eval" if checkpoint.latest(folder.checkpoints, "linear_eval") else "end_to_end",
                "dataset": config.data,
                "split": "test",
            },
            done=lambda row: _identity(row) in there,
            on_batch=advance,
        )
        new = False
        for row in rows:
            new = True
            session.folder.add_results([row])
            at = "" if row["eps"] is None else f" eps {row['eps']:.4g}"
            session.progress.note(f"evaluate {session.label:<10} {row['name']}{at}: {row['accuracy']:.1%}")
    if new:
        save_examples(session)


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row that is there already must agree in to be kept when an evaluation is resumed."""
    return (*row_key(row), row.get("samples"), "sweep" in (row.get("flags") or ()))


@contextmanager
def _evaluation_display(session: Session) -> Iterator[Callable[[int], None]]:
    """A function to call after every attacked batch; on a terminal it moves a bar, elsewhere the rows are enough."""
    if not session.progress.live:
        yield lambda images: None
        return
    config, test = session.config.evaluation, session.splits.test
    rows = 1 + len(config.cases)
    batches = math.ceil(min(len(test), config.samples or len(test)) / config.batch_size)
    with session.progress.stage("evaluate", total_steps=rows * batches, epochs=rows) as display:
        steps = itertools.count(1)

        def advance(images: int) -> None:
            step = next(steps)
            display.update(epoch=math.ceil(step / batches), step=step, loss=None, images=images)

        yield advance


def save_examples(session: Session) -> None:
    """``examples.safetensors``: eight test images, their PGD-20 versions and both predictions, for the image grid."""
    config, test = session.config, session.splits.test
    spec, eps = parse_attack("pgd20"), max(config.evaluation.eps, default=0.0)
    samples = torch.arange(min(8, len(test)), device=session.device)
    x, labels = test.batch(samples), test.labels[samples]
    x_adv = adversarial_examples(
        session.model, x, labels, samples, spec, eps=eps, branch=session.branch, seed=config.seed, impl=config.impl
    )
    with torch.no_grad():
        predictions = [session.model.logits(images, branch=session.branch).argmax(1) for images in (x, x_adv)]
    names = ("clean", "adversarial", "labels", "clean_prediction", "adversarial_prediction")
    tensors = {
        name: value.cpu().contiguous() for name, value in zip(names, (x, x_adv, labels, *predictions), strict=True)
    }
    file = session.folder.path / "examples.safetensors"
    write_atomic(file, save_tensors(tensors, {"attack": spec.name, "eps": repr(eps), "model": session.label}))


_STAGES: dict[str, Callable[[Session], None]] = {
    "pretrain": pretrain,
    "linear_eval": fit_classifier,
    "evaluate": evaluate,
}


def run(plan: Plan, progress: Progress, *, label: str = "trained", splits: Splits | None = None) -> RunFolder:
    """Do one run, its comparisons included; returns its folder, closed."""
    config = plan.config
    method = find_method(plan.method)(config)
    if config.encoder.bn.evaluation_branch not in method.trained_branches:
        trained = " or ".join(dict.fromkeys(method.trained_branches))
        raise UserError(
            f"encoder.bn.evaluation_branch must be {trained}, which {plan.method} trains, "
            f"got {config.encoder.bn.evaluation_branch!r}"
        )
    device = _device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    _check_impl(method, config, device)
    for name in config.evaluation.attacks:
        parse_attack(name)
    if config.stages[0] != "pretrain" and checkpoint.latest(plan.out / "checkpoints") is None:
        raise UserError(f"{plan.out}: the stage {config.stages[0]} needs a checkpoint of an earlier one, found none")
    if splits is None:
        splits = data.load(config.data, config.data_dir, download=config.download)
        if config.train_samples is not None:
            splits = replace(splits, train=splits.train.select(torch.arange(len(splits.train))[: config.train_samples]))
    _check_data(method, config, splits)
    unlabeled = _load_unlabeled(method, config, splits)
    model = build_model(method, InputSpec.of(splits))
    initialise(model, config.seed)
    with RunFolder.create(plan.out, resume=plan.resume, overwrite=plan.overwrite) as folder:
        _write_or_check_config(plan, folder)
        model, splits_there = model.to(device), splits.to(device)
        unlabeled = unlabeled and unlabeled.to(device)
        session = Session(plan, label, method, splits_there, unlabeled, folder, progress, device, model)
        _run_stages(session)
        for name in config.compare:
            _compare(session, name, splits)
    return folder


def _check_data(method: Method[Any], config: TrainConfig, splits: Splits) -> None:
    """Refuse settings that do not fit the data, before the run folder is made."""
    for augmentation in method.augmentations:
        augmentation.check_channels(splits.in_channels)
    if len(splits.train) < method.min_samples:
        raise UserError(f"these settings need at least {method.min_samples} training images, got {len(splits.train)}")
    for name, size in (("batch_size", config.batch_size), ("linear_eval.batch_size", config.linear_eval.batch_size)):
        if size > len(splits.train):
            raise UserError(f"{name} must be at most the {len(splits.train)} training samples, got {size}")


def _load_unlabeled(method: Method[Any], config: TrainConfig, splits: Splits) -> Dataset | None:
    """The images of the second data set, if the method asks for one."""
    if method.unlabeled_data is None:
        return None
    train = data.load(method.unlabeled_data, config.data_dir, download=config.download).train
    expected, found = splits.train.images.shape[1:], train.images.shape[1:]
    if found != expected:
        raise UserError(f"unlabeled_data must have images of {list(expected)} like {config.data}, got {list(found)}")
    if config.batch_size > len(train):
        raise UserError(f"batch_size must be at most the {len(train)} unlabelled samples, got {config.batch_size}")
    return train


def _run_stages(session: Session) -> None:
    for stage in session.config.stages:
        if stage in session.folder.stages and stage != "evaluate":  # evaluate itself skips the rows that are there
            continue
        if stage != "pretrain":
            _load_weights(session, before=stage)
        _STAGES[stage](session)
        session.folder.finish_stage(stage)


def _load_weights(session: Session, before: str) -> None:
    """Bring the model to where the stages before ``before`` left it."""
    stages = ["pretrain", "linear_eval"] if before == "evaluate" else ["pretrain"]
    found = [stage for stage in stages if checkpoint.latest(session.folder.checkpoints, stage)]
    if not found:
        raise UserError(f"{session.folder.path}: the stage {before} needs the stage pretrain first")
    loaded = load(session.folder.path, stage=found[-1]).to(session.device)
    session.model.heads = loaded.heads
    session.model.encoder = loaded.encoder
    session.model.eval()


def _compare(session: Session, name: Comparison, splits: Splits) -> None:
    """Train and evaluate a model to compare with, in ``comparisons/<name>``, and copy its rows."""
    config = session.config
    if name == "undefended":
        recipe = find_recipe(f"ce_{config.data}")
        values = {field: getattr(config, field) for field in _SHARED_WITH_UNDEFENDED}
        bn = config.encoder.bn  # ce trains the first branch only
        values["encoder"] = replace(config.encoder, bn=replace(bn, evaluation_branch=bn.branches[0]))
        plan = Plan(recipe.method, recipe.name, replace(recipe.config, **values), Path(), False, False)
    else:
        plan = replace(session.plan, config=replace(config, epochs=0, compare=()))
    out = session.folder.path / "comparisons" / name
    out.parent.mkdir(exist_ok=True)
    folder = run(replace(plan, out=out, resume=True, overwrite=False), session.progress, label=name, splits=splits)
    session.folder.add_results([{**row, "run": session.folder.name} for row in folder.results])


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device and a CUDA build of torch; found none")
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


def _write_or_check_config(plan: Plan, folder: RunFolder) -> None:
    values = config_values(plan.config)
    if folder.config_file.exists():
        _, _, config = read_config(folder.config_file)
        saved = config_values(config)
        for key, value in saved.items():
            if key not in _MAY_CHANGE and value != values[key]:
                raise UserError(f"{folder.path}: cannot resume with {key} {values[key]!r}, the run has {value!r}")
        # What was trained and where stays as it was; what is measured is what was asked for last.
        values = saved | {key: values[key] for key in ("evaluation", "compare")}
        if values == saved:
            return
    folder.write_config(plan.method, plan.recipe, values)


def show(todo: list[Plan], console: Console) -> None:
    """The table, the figures and one line that says where everything is."""
    folders = [plan.out for plan in todo]
    report.show(folders, console)
    where = ", ".join(map(str, folders))
    report.emit(console, f"Table, figures and checkpoints are in {where}; next: {_next_step(todo[-1])}")


def _next_step(plan: Plan) -> str:
    if plan.config.data == "digits":
        return f"python -m clead.train {plan.method} --data cifar10 --data-dir DIR"
    return f"python -m clead.export {plan.out} --out encoder.safetensors"


def list_methods(console: Console) -> None:
    """Method, paper and one line each."""
    table = Table("method", "paper", "what it does", box=None, pad_edge=False)
    for name, method in METHODS.items():
        table.add_row(name, method.paper, (method.__doc__ or "").splitlines()[0])
    console.print(table)


def main(argv: list[str]) -> None:
    """The command."""
    console = report.output_console()
    if "--list" in argv or argv[:1] in (["--help"], ["-h"]):
        list_methods(console)
        if "--list" not in argv:
            report.emit(console, "", "python -m clead.train METHOD trains one; METHOD --help shows its settings.")
        return
    todo = plans(argv)
    for plan in todo:  # all of them before the first is trained
        RunFolder.check(plan.out, resume=plan.resume, overwrite=plan.overwrite)
    progress = Progress(console)
    for plan in todo:
        run(plan, progress)
    show(todo, console)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command with --resume continues")
