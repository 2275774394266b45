"""Models that no run of ours trained: official checkpoints, those of libraries, and what a function returns."""

from __future__ import annotations

import argparse
import importlib
import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from clead import data
from clead.attacks import frozen
from clead.config import EvaluationConfig, LogisticRegressionConfig, OptimizerConfig, TrainConfig
from clead.data import Splits
from clead.errors import UserError, one_line, place
from clead.evaluate.libraries import is_of_a_library, open_pretrained
from clead.evaluate.models import Opened, subject_of
from clead.models import LinearHead, Model
from clead.models.official import FORMATS, read_official
from clead.protocols.encode import encode
from clead.protocols.logistic_regression import fit_linear
from clead.protocols.subject import Classifier

# ACL's fine-tuning of a linear classifier: 25 epochs, the rate a tenth from 15 and a hundredth from 20 on.
_LINEAR = LogisticRegressionConfig(
    epochs=25,
    batch_size=128,
    optimizer=OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="step", milestones=(15 / 25, 20 / 25)),
)

_COMPARED_WITH_TRAINING = ("knn", "logistic_regression")


def is_outside(path: Path, arguments: argparse.Namespace) -> bool:
    """Whether it is no run folder or checkpoint of ours."""
    return not path.is_dir() and (arguments.format is not None or path.is_file() or _is_named(path))


def open_outside(path: Path, arguments: argparse.Namespace) -> Opened:
    """A file in an official format, a library's model, or what a function without arguments returns.

    The last two are classifiers of images [B, C, H, W] in [0, 1], which they take to logits [B, K], or one of our own
    models. An encoder without a classifier gets a linear one, trained on its features of the training images.
    """
    for name in ("data", "out"):
        if getattr(arguments, name) is None:
            raise UserError(f"{path}: a model from outside needs --{name}")
    device, seed = torch.device(arguments.device), arguments.seed or 0
    splits = data.load(arguments.data, arguments.data_dir, image_size=arguments.image_size).to(device)
    wanting = [name for name in arguments.protocols if name in _COMPARED_WITH_TRAINING]
    if wanting and not len(splits.train):
        raise UserError(f"--protocols {','.join(wanting)} needs training images, found none in {arguments.data}")
    module, name = _module(path, arguments).to(device).eval(), str(path) if _is_named(path) else path.stem
    protocol, branch = "end_to_end", None
    if isinstance(module, Model):
        branch = _branch(path, module, arguments.branch)
        _check_channels(path, module, splits)
        if "classifier" not in module.heads:
            protocol = "linear_eval"
            module.heads["classifier"] = _linear_classifier(path, module, branch, splits, seed)
        classifier = Classifier.of(module, branch)
    else:
        classifier = Classifier(module, partial(_logits, path, module))
    _check_logits(path, classifier, splits)
    radius = EvaluationConfig(eps=(8 / 255,))
    config = TrainConfig(data=arguments.data, augment="crop_flip", seed=seed, evaluation=radius)
    subject = subject_of(
        classifier,
        branch,
        splits.test,
        config,
        name=str(path),
        key={"run": name, "model": "trained", "protocol": protocol, "dataset": arguments.data},
        samples=arguments.samples,
        batch_size=arguments.batch_size,
    )
    return Opened(subject, module, arguments.format or "outside", config, splits, (arguments.out,), shared=True)


def _is_named(path: Path) -> bool:
    """Whether it is no file but ``module:function`` or the name of a library's model."""
    name = str(path)
    return not path.exists() and (is_of_a_library(name) or re.fullmatch(r"[\w.]*:[\w.]*", name) is not None)


def _module(path: Path, arguments: argparse.Namespace) -> nn.Module:
    if not _is_named(path):
        if arguments.format is None:
            raise UserError(f"{path}: a file of weights needs --format, one of {', '.join(FORMATS)}")
        return read_official(path, arguments.format, head=arguments.head)
    if is_of_a_library(str(path)):
        return open_pretrained(str(path), download=arguments.download)
    return _call(str(path))


def _call(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        model = getattr(importlib.import_module(module_name), function_name)()
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and a script may end the program
        said = f"{type(error).__name__}: {one_line(error)}{place(error)}"
        raise UserError(f"{name}: expected a function that returns a model, found {said}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}: expected a function that returns a torch.nn.Module, found {type(model).__name__}")
    if any(map(is_lazy, model.parameters())):
        raise UserError(f"{name}: expected a model with weights, found layers that wait for their first images")
    return model


def _branch(path: Path, model: Model, asked: str | None) -> str:
    branches = model.encoder.bn_config.branches
    if asked is not None and asked not in branches:
        raise UserError(f"{path}: --branch must be of {', '.join(branches)}, got {asked!r}")
    return asked or model.evaluation_branch


def _check_channels(path: Path, model: Model, splits: Splits) -> None:
    mean: Tensor = model.encoder.normalize.mean
    if len(mean) != splits.in_channels:
        raise UserError(f"{path}: expects images with {len(mean)} channels, found {splits.in_channels} in --data")


def _linear_classifier(path: Path, model: Model, branch: str, splits: Splits, seed: int) -> LinearHead:
    labels = splits.train.labels
    if not len(labels) or bool((labels < 0).any()):
        found = "unlabelled ones" if len(labels) else "none"
        raise UserError(f"{path}: expected labelled training images to train a classifier on, found {found} in --data")
    features = encode(model, splits.train, branch=branch)
    return fit_linear(features, labels, splits.num_classes, _LINEAR, seed)


def _logits(path: Path, module: nn.Module, x: Tensor) -> Tensor:
    """What the module says of images [B, C, H, W]; it may be of the user's code, which may raise anything."""
    try:
        logits: Tensor = module(x)
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}{place(error)}"
        raise UserError(f"{path}: expected logits of {x.dtype} images {list(x.shape)}, found {said}") from error
    return logits


def _check_logits(path: Path, classifier: Classifier, splits: Splits) -> None:
    """Show the model two images, before anything is attacked or written."""
    images = splits.test.batch(torch.arange(min(2, len(splits.test)), device=splits.test.labels.device))
    with frozen(classifier.module), torch.enable_grad():
        logits: object = classifier.logits(images.requires_grad_())
        gradient = None
        if isinstance(logits, Tensor) and logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
    expected = f"{path}: expected float32 logits {[len(images), splits.num_classes]} of images {list(images.shape)}"
    if not isinstance(logits, Tensor):
        raise UserError(f"{expected}, found {type(logits).__name__}")
    if logits.shape != (len(images), splits.num_classes) or logits.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{expected}, found {logits.dtype} {list(logits.shape)}")
    if gradient is None:  # or every attack would find it robust
        raise UserError(
            f"{path}: expected logits with gradients for the images, found none (no_grad, detach or numpy?)"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of such models."""
    group = parser.add_argument_group(
        "models from outside: FILE --format F, module:function, timm:NAME, torchvision:NAME or hf:OWNER/NAME"
    )
    group.add_argument("--format", choices=sorted(FORMATS), help="the official code that wrote the files")
    group.add_argument("--head", type=Path, metavar="FILE", help="its linear classifier, where that is kept apart")
    group.add_argument("--branch", help="its batch norm, such as clean or adv; default what its authors evaluate")
    group.add_argument("--data", help=f"the data set: {', '.join(data.DATASETS)}")
    group.add_argument("--image-size", type=int, metavar="N", help="height and width to resize the images to")
    group.add_argument("--download", action="store_true", help="let a library fetch weights its cache does not have")
