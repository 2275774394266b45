"""Doing once more the step whose numbers were not finite, and finding the first of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor, nn

from clead.cli import config_of
from clead.config import CLASSIFIER_STAGES, STAGES, Stage, TrainConfig
from clead.engine.checkpoint import Checkpoint
from clead.engine.gradients import add_gradients
from clead.engine.guard import statistics
from clead.errors import UserError, one_line
from clead.loading import model_of
from clead.methods import Method, find_method
from clead.methods.base import Batch
from clead.models import Model
from clead.protocols.finetune import loss_of


def replay(file: Path) -> tuple[list[str], bool]:
    """Replay a ``nonfinite-….safetensors`` that a run wrote.

    Returns:
        What was found, line by line, and whether all of it is finite now.

    Raises:
        UserError: the file is missing, damaged or of something else.
    """
    tensors, meta, config_text = _read(file)
    try:
        saved = json.loads(config_text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: expected a configuration, found {one_line(error)}") from error
    method_name, _, config = config_of(saved, file)
    method = find_method(method_name)(config)
    checkpoint = Checkpoint(file, meta, _part(tensors, "model"), {})
    model = model_of(checkpoint, method_name, config)
    try:
        method.load_state_dict(_part(tensors, "method"))
        batch = _batch(tensors, meta["batch"])
        stage: Stage = meta["stage"]
        lines, finite = _step(model, method, config, stage, batch)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{file}: expected a batch of {method_name}, found {one_line(error)}") from error
    return [f"{stage}, step {batch.step + 1} of {method_name}:", *lines], finite


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            metadata = opened.metadata() or {}
        meta = json.loads(metadata["meta"])
        config = metadata["config"]
    except FileNotFoundError as error:
        raise UserError(f"{file}: expected a file, found none") from error
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: expected a batch that a run wrote, found {one_line(error)}") from error
    if not isinstance(meta, dict) or meta.get("schema") != 1 or not isinstance(meta.get("model"), dict):
        raise UserError(f"{file}: expected a batch of schema 1 and its model, found {str(meta)[:60]}")
    if meta.get("stage") not in STAGES or not isinstance(meta.get("batch"), dict):
        raise UserError(f"{file}: expected a stage and a batch, found {str(meta.get('stage'))[:60]}")
    return tensors, meta, config


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _batch(tensors: dict[str, Tensor], position: dict[str, Any]) -> Batch:
    step, seed, progress = int(position["step"]), int(position["seed"]), float(position["progress"])
    other = _part(tensors, "unlabeled")
    unlabeled = Batch(other["images"], other["labels"], other["sample_ids"], step, seed) if other else None
    own = _part(tensors, "batch")
    return Batch(own["images"], own["labels"], own["sample_ids"], step, seed, progress, unlabeled)


def _step(model: Model, method: Method[Any], config: TrainConfig, stage: Stage, batch: Batch) -> tuple[list[str], bool]:
    """One step as the training loop does it: what is in its numbers, and whether all are finite."""
    model.eval()
    if stage in CLASSIFIER_STAGES:
        trained, loss = loss_of(
            model, stage, config.finetuning(stage), model.evaluation_branch, config.impl, fold=config.speed.fold
        )
    else:
        computing = model.computing_in(config.speed.compute_dtype, config.cache_batch or None)
        trained, loss = model, lambda seen: method.training_loss(computing, seen)
    trained.train()
    first: list[str] = []
    hooks = [module.register_forward_hook(_watch(first, name)) for name, module in model.named_modules() if name]
    terms = add_gradients(loss, batch, 1 if stage in CLASSIFIER_STAGES else config.accumulate)
    for hook in hooks:
        hook.remove()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    lines = [f"  images: {statistics(batch.images)}"]
    lines += [f"  weight {name}: {statistics(weight)}" for name, weight in model.named_parameters()]
    lines += [f"  gradient {name}: {statistics(gradient)}" for name, gradient in gradients.items()]
    lines += [f"  loss {name}: {float(term)}" for name, term in terms.items()]
    finite = all(bool(value.isfinite().all()) for value in (*terms.values(), *gradients.values()))
    where = f"the first layer to make numbers that are not finite is {first[0]}" if first else "all layers are finite"
    lines.append(f"  {'all is finite here' if finite else f'reproduced: {where}'}")
    return lines, finite


def _watch(first: list[str], name: str) -> Any:
    """A hook that notes the first module that makes a number that is not finite of numbers that are."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen = [value for value in inputs if isinstance(value, Tensor)]
        lost = isinstance(output, Tensor) and not output.detach().isfinite().all()
        if not first and lost and all(bool(value.detach().isfinite().all()) for value in seen):
            first.append(name)

    return hook
