"""The attacks of an evaluation by name: what each maximises, how long, with which step."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import Constraint, Objective, attack, frozen
from clead.attacks.autoattack import PARTS, autoattack
from clead.attacks.contrastive import instance_loss
from clead.attacks.cw_l2 import cw_l2
from clead.attacks.mifgsm import mifgsm
from clead.attacks.one_step import rfgsm
from clead.config import Impl
from clead.errors import UserError
from clead.losses import margin
from clead.protocols.subject import Classifier
from clead.rng import Rng

NORMS = ("linf", "l2", "l1")
MOST_TARGETS = 9  # as AutoAttack


@dataclass(frozen=True, eq=False)
class Problem:
    """Images to attack.

    Attributes:
        classifier: the white box.
        x: [B, C, H, W] in [0, 1].
        labels: int64 [B].
        samples: int64 [B], indices within the split.
        constraint: ball and box; its radius is a float.
        turn: number of the restart, or of the target class.
        seed: of the random start.
        impl: implementation of the perturbation operators.
        batch_size: images at once, where a library asks.
    """

    classifier: Classifier
    x: Tensor
    labels: Tensor
    samples: Tensor
    constraint: Constraint
    turn: int
    seed: int
    impl: Impl
    batch_size: int

    @property
    def eps(self) -> float:
        """The radius."""
        return float(self.constraint.eps)

    @property
    def rng(self) -> Rng:
        """The stream of the random start."""
        return Rng.create(self.seed, "eval_attack", self.samples, self.turn)

    def objective(self, loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor | None = None) -> Objective:
        """``loss(logits, labels)`` of the frozen classifier."""
        chosen = self.labels if labels is None else labels
        return Objective(self.classifier.module, self.classifier.logits, lambda logits: loss(logits, chosen))


@dataclass(frozen=True)
class Perturbed:
    """What an attack found.

    Attributes:
        x_adv: [B, C, H, W] inside the constraint.
        flags: what is wrong with the attempt.
        distance: [B], of the nearest adversarial image where the attack looks for that one.
    """

    x_adv: Tensor
    flags: tuple[str, ...] = ()
    distance: Tensor | None = None


@dataclass(frozen=True)
class AttackSpec:
    """One attack.

    Attributes:
        name: for people, and what ``find_attack`` takes.
        attack: id in results.json.
        perturb: makes x_adv.
        norm: the ball.
        steps: gradient steps (queries of Square); None where they have no meaning.
        relative_step: step size over eps.
        random_start: from a uniform point of the ball.
        restarts: independent attempts; None where the attack knows none.
        targets: one attempt per wrong class, the likeliest first, instead of restarts.
        library: looks after batches and broken images itself.
        joint: what happens to an image depends on the others of its batch, so none is left out.
    """

    name: str
    attack: str
    perturb: Callable[[AttackSpec, Problem], Perturbed]
    norm: str = "linf"
    steps: int | None = None
    relative_step: float | None = None
    random_start: bool = False
    restarts: int | None = None
    targets: bool = False
    library: bool = False
    joint: bool = False

    def turns(self, classes: int) -> int:
        """Attempts per image."""
        return min(MOST_TARGETS, classes - 1) if self.targets else self.restarts or 1

    def key(self, eps: float) -> dict[str, Any]:
        """The fields of a row that name this attack at ``eps``."""
        step = None if self.relative_step is None else self.relative_step * eps
        names = {"attack": self.attack, "norm": self.norm, "eps": eps}
        return {**names, "steps": self.steps, "step_size": step, "restarts": self.restarts}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per row: [B, K], int64 [B] -> [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def _ascend(spec: AttackSpec, problem: Problem, objective: Objective, *, best: bool) -> Perturbed:
    assert spec.steps is not None and spec.relative_step is not None
    x_adv = attack(
        objective,
        problem.x,
        constraint=problem.constraint,
        steps=spec.steps,
        step_size=spec.relative_step * problem.eps,
        random_start=spec.random_start,
        keep="best" if best else "last",
        rng=problem.rng,
        impl=problem.impl,
    )
    return Perturbed(x_adv)


def _one_step(spec: AttackSpec, problem: Problem) -> Perturbed:
    return _ascend(spec, problem, problem.objective(cross_entropy), best=False)


def _pgd(spec: AttackSpec, problem: Problem) -> Perturbed:
    return _ascend(spec, problem, problem.objective(cross_entropy), best=True)


def _cw(spec: AttackSpec, problem: Problem) -> Perturbed:
    return _ascend(spec, problem, problem.objective(margin), best=True)


def _targeted(spec: AttackSpec, problem: Problem) -> Perturbed:
    logits = problem.classifier.predict(problem.x).scatter(1, problem.labels[:, None], -torch.inf)
    target = logits.sort(dim=1, descending=True, stable=True).indices[:, problem.turn]
    return _ascend(
        spec, problem, problem.objective(lambda logits, labels: -cross_entropy(logits, labels), target), best=True
    )


def _rfgsm(spec: AttackSpec, problem: Problem) -> Perturbed:
    objective = problem.objective(cross_entropy)
    return Perturbed(rfgsm(objective, problem.x, constraint=problem.constraint, rng=problem.rng, impl=problem.impl))


def _mifgsm(spec: AttackSpec, problem: Problem) -> Perturbed:
    assert spec.steps is not None and spec.relative_step is not None
    x_adv = mifgsm(
        problem.objective(cross_entropy),
        problem.x,
        constraint=problem.constraint,
        steps=spec.steps,
        step_size=spec.relative_step * problem.eps,
        impl=problem.impl,
    )
    return Perturbed(x_adv)


def _contrastive(spec: AttackSpec, problem: Problem) -> Perturbed:
    classifier = problem.classifier
    if not classifier.encodings:
        raise UserError("the contrastive attack needs a model with an encoder, got one that gives logits only")
    *_, encode = classifier.encodings.values()
    with frozen(classifier.module), torch.no_grad():
        anchors = encode(problem.x)
    loss = instance_loss(anchors, temperature=classifier.temperature, impl=problem.impl)
    return _ascend(spec, problem, Objective(classifier.module, encode, loss), best=False)


def _cw_l2(spec: AttackSpec, problem: Problem) -> Perturbed:
    assert spec.steps is not None
    x_adv, distance = cw_l2(problem.objective(margin), problem.x, steps=spec.steps)
    inside = (distance <= problem.eps).view(-1, *[1] * (problem.x.dim() - 1))
    return Perturbed(torch.where(inside, x_adv, problem.x), distance=distance)


def _autoattack(spec: AttackSpec, problem: Problem) -> Perturbed:
    if problem.eps == 0:
        return Perturbed(problem.x)  # the library divides by eps
    found = autoattack(
        problem.classifier.module,
        problem.classifier.logits,
        problem.x,
        problem.labels,
        attack=spec.attack,
        norm=spec.norm,
        eps=problem.eps,
        seed=problem.seed,
        batch_size=problem.batch_size,
    )
    return Perturbed(*found)


# PGD's step of eps / 4 is 2/255 at 8/255; in l2 and l1 2.5 eps / steps, after Madry et al.
_CATALOGUE = (
    AttackSpec("fgsm", "fgsm", _one_step, steps=1, relative_step=1.0, restarts=1),
    AttackSpec("rfgsm", "rfgsm", _rfgsm, steps=1, relative_step=0.5, restarts=1),
    AttackSpec("ffgsm", "ffgsm", _one_step, steps=1, relative_step=1.25, random_start=True, restarts=1),
    AttackSpec("pgd", "pgd", _pgd, steps=20, relative_step=0.25, random_start=True, restarts=1),
    AttackSpec("cw", "cw_linf", _cw, steps=20, relative_step=0.25, random_start=True, restarts=1),
    AttackSpec("cw_l2", "cw_l2", _cw_l2, norm="l2", steps=200),
    AttackSpec("mifgsm", "mifgsm", _mifgsm, steps=10, relative_step=0.1, restarts=1),
    AttackSpec(
        "targeted", "pgd_targeted", _targeted, steps=20, relative_step=0.25, random_start=True, restarts=1, targets=True
    ),
    AttackSpec(
        "contrastive",
        "contrastive",
        _contrastive,
        steps=20,
        relative_step=0.25,
        random_start=True,
        restarts=1,
        joint=True,
    ),
    AttackSpec("apgd_ce", "apgd_ce", _autoattack, steps=100, library=True),
    AttackSpec("apgd_dlr", "apgd_dlr", _autoattack, steps=100, library=True),
    AttackSpec("apgd_t", "apgd_t", _autoattack, steps=100, library=True),
    AttackSpec("fab", "fab", _autoattack, steps=100, library=True),
    AttackSpec("square", "square", _autoattack, steps=5000, library=True),
    AttackSpec("autoattack", "autoattack", _autoattack, library=True),
)
assert {spec.attack for spec in _CATALOGUE if spec.library} == set(PARTS)
CATALOGUE = {spec.name: spec for spec in _CATALOGUE}
_COUNTED = {"pgd", "mifgsm", "targeted", "cw", "contrastive"}  # take their number of steps in the name: pgd20
_ONLY = {"fgsm": ("linf", "l2"), "rfgsm": ("linf",), "ffgsm": ("linf",), "cw": ("linf",), "cw_l2": ("l2",)}


def find_attack(text: str, *, norm: str = "linf", steps: int | None = None, restarts: int | None = None) -> AttackSpec:
    """The attack called ``text``: a key of CATALOGUE, with a number of steps (``pgd40``), with a norm (``pgd40_l2``).

    Args:
        text: the name.
        norm: the ball, where the name has none.
        steps: of pgd, cw, mifgsm, targeted and contrastive, where the name has none.
        restarts: of the attacks with a random start (targeted has its targets instead).

    Raises:
        UserError: the name is unknown, or the attack does not exist in this norm.
    """
    name, digits, suffix = text, None, "l2" if text == "cw_l2" else None
    found = re.fullmatch(r"(.+?)([1-9]\d{0,3})?(?:_(linf|l2|l1))?", text)
    if text not in CATALOGUE and found:
        name, digits, suffix = found.groups()
    if name not in CATALOGUE or (digits and name not in _COUNTED):
        raise UserError(f"unknown attack {text!r}; expected one of {', '.join(CATALOGUE)}, or pgdN such as pgd20")
    spec, norm = CATALOGUE[name], suffix or norm
    if norm not in _ONLY.get(name, NORMS):
        raise UserError(f"the attack {name} exists in {' and '.join(_ONLY[name])}, got the norm {norm!r}")
    spec = replace(spec, norm=norm)
    if restarts and (spec.random_start or name == "rfgsm") and not spec.targets:
        spec = replace(spec, restarts=restarts)
    return _with_steps(spec, int(digits) if digits else steps or spec.steps or 1) if name in _COUNTED else spec


def _with_steps(spec: AttackSpec, steps: int) -> AttackSpec:
    relative = spec.relative_step if spec.norm == "linf" else 2.5 / steps
    # Fewer than four steps must still be able to cross the ball; MI-FGSM's paper divides it evenly.
    relative = 1.0 / steps if spec.attack == "mifgsm" else max(relative or 0.0, 1.0 / steps)
    name = "cw" if spec.name == "cw" and steps == 20 else f"{spec.name}{steps}"
    return replace(spec, name=name, steps=steps, relative_step=relative)
