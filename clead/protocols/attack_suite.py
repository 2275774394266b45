"""White-box attacks on a classifier: FGSM, PGD-N and CW in the linf ball."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import Constraint, Objective, attack
from clead.config import EvaluationConfig, Impl
from clead.data import Dataset
from clead.engine.results import Row, make_row
from clead.errors import UserError
from clead.losses import margin
from clead.models import Model
from clead.rng import Rng


@dataclass(frozen=True)
class EvalAttack:
    """One attack of the suite; its step is ``eps * relative_step``.

    Attributes:
        name: for people.
        attack: id in results.json.
        steps: gradient steps.
        relative_step: step size over eps; 1/4 is 2/255 at 8/255.
        random_start: start from a uniform point of the ball.
        loss: logits [B, K], labels [B] -> losses [B] to ascend.
    """

    name: str
    attack: str
    steps: int
    relative_step: float
    random_start: bool
    loss: Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def parse_attack(name: str) -> EvalAttack:
    """``fgsm``, ``pgdN`` with N steps, or ``cw`` (20 steps on the margin)."""
    if name == "fgsm":
        return EvalAttack("fgsm", "fgsm", 1, 1.0, False, _cross_entropy)
    if name == "cw":
        return EvalAttack("cw", "cw_linf", 20, 0.25, True, margin)
    steps = re.fullmatch(r"pgd([1-9]\d{0,3})", name)
    if steps:
        return EvalAttack(name, "pgd", int(steps[1]), 0.25, True, _cross_entropy)
    raise UserError(f"unknown attack {name!r}; expected fgsm, cw or pgdN such as pgd20")


def attack_suite(
    model: Model,
    dataset: Dataset,
    config: EvaluationConfig,
    *,
    branch: str,
    seed: int,
    impl: Impl,
    key: dict[str, Any],
    done: Callable[[dict[str, Any]], bool] = lambda row: False,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Iterator[Row]:
    """Accuracy on clean images and under every attack of ``config``, row by row.

    The model is attacked through its own logits with batch norm in eval mode. Per sample the iterate of largest loss
    counts, so an attack never ends weaker than it was on the way. Every perturbation is checked from the images.

    Args:
        model: with a ``classifier`` head.
        dataset: the split; only the first ``config.samples``.
        config: attacks and radii.
        branch: batch-norm branch.
        seed: seed of the random starts.
        impl: implementation of the operators.
        key: fields that every row shares (run, model, protocol, dataset, split).
        done: says of a row's key, samples and flags whether it is there already, so that a resumed evaluation skips it.
        on_batch: called with the number of images after every batch.
    """
    model.eval()
    samples = torch.arange(min(len(dataset), config.samples or len(dataset)), device=dataset.labels.device)
    shared = {**key, "bn_branch": branch, "dtype": "float32", "seed": seed}

    def row(name: str, perturb: Callable[[Tensor, Tensor, Tensor], Tensor], flags: list[str], **fields: Any) -> Row:
        start = time.perf_counter()
        correct = 0
        for part in samples.split(config.batch_size):
            x, labels = dataset.batch(part), dataset.labels[part]
            with torch.no_grad():
                logits = model.logits(perturb(x, labels, part), branch=branch)
            correct += int((logits.argmax(1) == labels).sum())
            on_batch(len(part))
        seconds = time.perf_counter() - start
        return make_row(name=name, correct=correct, samples=len(samples), seconds=seconds, flags=flags, **fields)

    if not done({**shared, "samples": len(samples)}):
        yield row("clean", lambda x, labels, part: x, [], **shared)
    for attack_name, eps, sweep in config.cases:
        spec = parse_attack(attack_name)
        fields = {
            **shared,
            "attack": spec.attack,
            "norm": "linf",
            "eps": eps,
            "steps": spec.steps,
            "step_size": spec.relative_step * eps,
            "restarts": 1,
        }
        flags = ["sweep"] if sweep else []
        if not done({**fields, "samples": len(samples), "flags": flags}):
            yield row(
                spec.name,
                lambda x, labels, part, spec=spec, eps=eps: adversarial_examples(  # type: ignore[misc]
                    model, x, labels, part, spec, eps=eps, branch=branch, seed=seed, impl=impl
                ),
                flags,
                **fields,
            )


def adversarial_examples(
    model: Model,
    x: Tensor,
    labels: Tensor,
    samples: Tensor,
    spec: EvalAttack,
    *,
    eps: float,
    branch: str,
    seed: int,
    impl: Impl = "auto",
) -> Tensor:
    """x_adv [B, C, H, W] for images ``x`` with global indices ``samples``; verified to lie in the ball and the box."""
    x_adv = attack(
        Objective(model, lambda x: model.logits(x, branch=branch), lambda logits: spec.loss(logits, labels)),
        x,
        constraint=Constraint("linf", eps),
        steps=spec.steps,
        step_size=spec.relative_step * eps,
        random_start=spec.random_start,
        keep="best",
        rng=Rng.create(seed, "eval_attack", samples),
        impl=impl,
    )
    inside = (x_adv >= x - eps) & (x_adv <= x + eps) & (x_adv >= 0) & (x_adv <= 1)
    if not bool(inside.all()):
        raise RuntimeError(f"{spec.name} at eps {eps} left the ball or the box on {int((~inside).sum())} pixels")
    return x_adv
