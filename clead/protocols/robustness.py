"""Accuracy under attack: attempts, verification of every perturbation, and rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clead.attacks import Constraint
from clead.engine.results import Row, make_row
from clead.protocols.attempts import AttackSpec, Problem
from clead.protocols.subject import Subject

HEADLINE = "apgd_ce+apgd_t"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of every image.

    Attributes:
        robust: bool [N], right before the attack and after every attempt.
        flags: what is wrong with the measurement.
        seconds: wall-clock time.
        x_adv: [N, C, H, W], the last attempt, or the one that broke the image.
        distance: [N] of the nearest adversarial image, where the attack looks for that one.
    """

    robust: Tensor
    flags: tuple[str, ...]
    seconds: float
    x_adv: Tensor
    distance: Tensor | None = None


def attack_all(
    subject: Subject, spec: AttackSpec, eps: float, *, correct: Tensor | None = None, skip: bool = True
) -> Outcome:
    """Attack every image of ``subject``.

    The attempts on an image do not depend on those on others, so leaving out the broken ones changes no result. Whether
    an attempt succeeded is what the model itself says, whatever made it.

    Args:
        subject: the model and its images.
        spec: the attack.
        eps: its radius.
        correct: bool [N], which images are right without an attack; measured when None.
        skip: leave out what is wrong already; otherwise every image has its x_adv, as transfer needs.
    """
    started = time.perf_counter()
    images, labels = subject.images, subject.labels
    correct = subject.correct(images) if correct is None else correct
    turns = spec.turns(len(subject.test.classes))
    size = len(images) if spec.library else subject.batch_size
    folded = subject.classifier if spec.library else subject.classifier.folded()
    constraint = Constraint(spec.norm, eps)  # type: ignore[arg-type]  # a name of NORMS
    robust, found, flags = correct.clone(), images.clone(), dict[str, None]()
    distance = torch.full((len(images),), math.nan, dtype=torch.float64, device=images.device)
    for turn in range(turns):
        todo = (robust if skip and not spec.joint else torch.ones_like(robust)).nonzero().squeeze(1)
        for part in todo.split(size) if len(todo) else ():
            problem = Problem(
                subject.classifier,
                folded,
                images[part],
                labels[part],
                subject.samples[part],
                constraint,
                turn,
                subject.seed,
                subject.impl,
                subject.batch_size,
            )
            perturbed = spec.perturb(spec, problem)
            verify(perturbed.x_adv, problem.x, spec.norm, eps, spec.name)
            flags.update(dict.fromkeys(perturbed.flags))
            if perturbed.distance is not None:
                distance[part] = perturbed.distance
            still = _still_right(subject, perturbed.x_adv, problem.labels)
            kept = (robust[part] | ~correct[part] | (turn == 0)).view(-1, 1, 1, 1)
            found[part] = torch.where(kept, perturbed.x_adv, found[part])
            robust[part] &= still
            subject.on_batch(len(part))
    seconds = time.perf_counter() - started
    return Outcome(robust, tuple(flags), seconds, found, None if distance.isnan().all() else distance)


def _still_right(subject: Subject, x_adv: Tensor, labels: Tensor) -> Tensor:
    parts = x_adv.split(subject.batch_size)
    return torch.cat([subject.classifier.predict(part).argmax(1) for part in parts]) == labels


def verify(x_adv: Tensor, x: Tensor, norm: str, eps: float, name: str) -> None:
    """Raise a RuntimeError unless x_adv, as it is stored, lies in the ball around x and in [0, 1]."""
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    if norm == "linf":
        inside &= ((x_adv >= x - eps) & (x_adv <= x + eps)).flatten(1).all(1)
    else:
        length = (x_adv.double() - x.double()).flatten(1).norm(p=int(norm[1]), dim=1)
        inside &= length <= eps * (1 + 1e-6)
    if not bool(inside.all()):
        raise RuntimeError(f"{name} at {norm} eps {eps} left the ball or [0, 1] on {int((~inside).sum())} images")


def outcome_row(subject: Subject, name: str, outcome: Outcome, **fields: object) -> Row:
    """The row of an outcome."""
    row = make_row(
        name=name,
        correct=int(outcome.robust.sum()),
        samples=len(outcome.robust),
        seconds=outcome.seconds,
        flags=[*subject.flags, *outcome.flags],
        **{**subject.key, **fields},
    )
    if outcome.distance is not None:
        median = float(outcome.distance[~outcome.distance.isnan()].median())
        row["median_norm"] = median if math.isfinite(median) else None
    return row


def clean_outcome(subject: Subject) -> Outcome:
    """The images as they are."""
    started = time.perf_counter()
    images = subject.images
    correct = subject.correct(images)
    return Outcome(correct, (), time.perf_counter() - started, images)


def robustness(
    subject: Subject,
    specs: Sequence[AttackSpec],
    radii: Sequence[float],
    done: Callable[[dict[str, Any]], bool] = lambda key: False,
) -> Iterator[Row]:
    """Clean accuracy, then every attack at every radius.

    AutoAttack is flagged ``headline``, and so is the worst case of APGD-CE and APGD-T where both were asked for: what
    a claim of robustness may rest on. Plain PGD never is.

    Args:
        subject: the model and its images.
        specs: the attacks.
        radii: their radii.
        done: says of the key of a row whether it is there already and need not be measured again.
    """
    clean = clean_outcome(subject)
    if not done(subject.key):
        yield outcome_row(subject, "clean", clean)
    pair = {"apgd_ce", "apgd_t"}
    worst: dict[tuple[str, float], dict[str, Outcome]] = {}
    for spec in specs:
        both = pair <= {other.attack for other in specs if other.norm == spec.norm} and spec.attack in pair
        for eps in radii:
            key = spec.key(eps)
            last = {**key, "attack": HEADLINE} if both else key  # neither of the two alone gives the worst case
            if done({**subject.key, **last}):
                continue
            outcome = attack_all(subject, spec, eps, correct=clean.robust)
            if spec.attack == "autoattack":
                outcome = replace(outcome, flags=("headline", *outcome.flags))
            yield outcome_row(subject, spec.name, outcome, **key)
            if both:
                parts = worst.setdefault((spec.norm, eps), {})
                parts[spec.attack] = outcome
                if set(parts) == pair:
                    yield outcome_row(subject, HEADLINE, _worst_of(parts["apgd_ce"], parts["apgd_t"]), **last)


def _worst_of(one: Outcome, other: Outcome) -> Outcome:
    flags = ("headline", *dict.fromkeys((*one.flags, *other.flags)))
    return Outcome(one.robust & other.robust, flags, one.seconds + other.seconds, one.x_adv)
