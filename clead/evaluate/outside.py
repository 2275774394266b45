"""Models that no run of ours trained: official checkpoints, and whatever a function of the user's returns."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clead import data
from clead.config import EvaluationConfig, LogisticRegressionConfig, OptimizerConfig, TrainConfig
from clead.data import Splits
from clead.errors import UserError
from clead.evaluate.models import Opened
from clead.models import Model
from clead.models.official import FORMATS, read_official
from clead.protocols.encode import encode
from clead.protocols.logistic_regression import fit_linear
from clead.protocols.subject import Classifier, Subject

# ACL's fine-tuning of a linear classifier: 25 epochs, the rate a tenth from 15 and a hundredth from 20 on.
_LINEAR = LogisticRegressionConfig(
    epochs=25,
    batch_size=128,
    optimizer=OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="step", milestones=(15 / 25, 20 / 25)),
)


def is_outside(path: Path, arguments: argparse.Namespace) -> bool:
    """Whether it is no run folder or checkpoint of ours."""
    return arguments.format is not None or (":" in path.name and not path.exists())


def open_outside(path: Path, arguments: argparse.Namespace) -> Opened:
    """A file in an official format, or ``module:function``: a function without arguments that returns a classifier.

    The classifier takes images [B, C, H, W] in [0, 1] to logits [B, K]. An official encoder without a classifier gets a
    linear one, trained on its features of the training images.
    """
    for name in ("data", "out"):
        if getattr(arguments, name) is None:
            raise UserError(f"{path}: a model from outside needs --{name}")
    device, seed = torch.device(arguments.device), arguments.seed or 0
    splits = data.load(arguments.data, arguments.data_dir, image_size=arguments.image_size).to(device)
    protocol, branch = "end_to_end", None
    if arguments.format is None:
        module, name = _call(str(path)), str(path)
        classifier = Classifier(module.to(device).eval(), module)
    else:
        model = read_official(path, arguments.format, head=arguments.head).to(device)
        name, branch = path.stem, _branch(path, model, arguments.branch)
        _check_images(path, model, splits)
        if "classifier" not in model.heads:
            protocol = "linear_eval"
            features = encode(model, splits.train, branch=branch)
            model.heads["classifier"] = fit_linear(features, splits.train.labels, splits.num_classes, _LINEAR, seed)
        module, classifier = model, Classifier.of(model, branch)
    test = splits.test
    key: dict[str, Any] = {
        "run": name,
        "model": "trained",
        "protocol": protocol,
        "bn_branch": branch,
        "dataset": arguments.data,
        "split": "test",
        "seed": seed,
        "dtype": "float32",
    }
    samples = torch.arange(min(len(test), arguments.samples or len(test)), device=device)
    subject = Subject(str(path), classifier, test, samples, key, seed, batch_size=arguments.batch_size)
    config = TrainConfig(data=arguments.data, augment="crop_flip", evaluation=EvaluationConfig(eps=(8 / 255,)))
    return Opened(subject, module, arguments.format or "outside", config, splits, (arguments.out,))


def _call(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        model = function()
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{name}: expected a function that returns a model, found {error!r}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}: expected a function that returns a torch.nn.Module, found {type(model).__name__}")
    return model


def _branch(path: Path, model: Model, asked: str | None) -> str:
    branches = model.encoder.bn_config.branches
    if asked is not None and asked not in branches:
        raise UserError(f"{path}: --branch must be of {', '.join(branches)}, got {asked!r}")
    return asked or model.evaluation_branch


def _check_images(path: Path, model: Model, splits: Splits) -> None:
    mean: Tensor = model.encoder.normalize.mean
    if len(mean) != splits.in_channels:
        raise UserError(f"{path}: expects images with {len(mean)} channels, found {splits.in_channels} in --data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of such models."""
    group = parser.add_argument_group("models from outside: FILE --format F, or module:function")
    group.add_argument("--format", choices=sorted(FORMATS), help="the official code that wrote the files")
    group.add_argument("--head", type=Path, metavar="FILE", help="its linear classifier, where that is kept apart")
    group.add_argument("--branch", help="its batch norm, such as clean or adv; default what its authors evaluate")
    group.add_argument("--data", help=f"the data set: {', '.join(data.DATASETS)}")
    group.add_argument("--image-size", type=int, metavar="N", help="height and width to resize the images to")
