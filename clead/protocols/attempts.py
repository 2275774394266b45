"""What an evaluation does to images: the attempts behind the names of ``clead.protocols.catalogue``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import Constraint, Objective, attack, frozen
from clead.attacks.autoattack import autoattack
from clead.attacks.contrastive import info_nce_against
from clead.attacks.cw_l2 import cw_l2
from clead.attacks.one_step import rfgsm
from clead.config import Impl
from clead.errors import UserError
from clead.losses import margin
from clead.protocols.subject import Classifier
from clead.rng import Rng

MOST_TARGETS = 9  # as AutoAttack


@dataclass(frozen=True, eq=False)
class Problem:
    """Images to attack.

    Attributes:
        classifier: the white box.
        folded: the same up to rounding, faster.
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
    folded: Classifier
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

    def objective(
        self, loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor | None = None, *, exact: bool = False
    ) -> Objective:
        """``loss(logits, labels)`` of the frozen classifier; ``exact`` where rounding decides, as on its boundary."""
        chosen = self.labels if labels is None else labels
        classifier = self.classifier if exact else self.folded
        return Objective(classifier.module, classifier.logits, lambda logits: loss(logits, chosen))


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
        name: for people, and what ``catalogue.find_attack`` takes.
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


def _lifted_where_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, plus log K where the model is wrong: more than any where it is right, with the same gradient.

    The cross-entropy alone may be larger at a point where the model is right than at another where it is wrong, and
    the best iterate would be none of those that fool it.
    """
    wrong = logits.argmax(1) != labels
    return cross_entropy(logits, labels) + math.log(logits.shape[1]) * wrong


def _ascend(
    spec: AttackSpec, problem: Problem, objective: Objective, *, best: bool, momentum: float | None = None
) -> Perturbed:
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
        momentum=momentum,
        impl=problem.impl,
    )
    return Perturbed(x_adv)


def one_step_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """One step on the cross-entropy (FGSM; F-FGSM from a random start)."""
    return _ascend(spec, problem, problem.objective(cross_entropy), best=False)


def pgd_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """Cross-entropy, step by step; of the iterates the worst that fools the model, else the worst."""
    return _ascend(spec, problem, problem.objective(_lifted_where_wrong), best=True)


def cw_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """PGD on the margin (Carlini & Wagner's loss in the linf ball)."""
    return _ascend(spec, problem, problem.objective(margin), best=True)


def targeted_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """Towards the wrong class of rank ``problem.turn``."""
    logits = problem.classifier.predict(problem.x).scatter(1, problem.labels[:, None], -torch.inf)
    target = logits.sort(dim=1, descending=True, stable=True).indices[:, problem.turn]
    return _ascend(
        spec, problem, problem.objective(lambda logits, labels: -cross_entropy(logits, labels), target), best=True
    )


def rfgsm_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """A random corner of half the ball, then one step."""
    objective = problem.objective(cross_entropy)
    return Perturbed(rfgsm(objective, problem.x, constraint=problem.constraint, rng=problem.rng, impl=problem.impl))


def mifgsm_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """Steps along the sum of normalised gradients (MI-FGSM; Dong et al., CVPR 2018, arXiv:1710.06081, algorithm 1)."""
    return _ascend(spec, problem, problem.objective(cross_entropy), best=False, momentum=1.0)


def contrastive_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """Label-free: the embedding away from its own, with the loss of the encoder's training."""
    classifier = problem.classifier
    if not classifier.encodings:
        raise UserError("the contrastive attack needs a model with an encoder, got one that gives logits only")
    *_, encode = classifier.encodings.values()
    with frozen(classifier.module), torch.no_grad():
        anchors = encode(problem.x)
    loss = info_nce_against(anchors, temperature=classifier.temperature, impl=problem.impl)
    return _ascend(spec, problem, Objective(classifier.module, encode, loss), best=False)


def cw_l2_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """The nearest adversarial image; it counts where it is within the radius."""
    assert spec.steps is not None
    x_adv, distance = cw_l2(problem.objective(margin, exact=True), problem.x, steps=spec.steps)
    inside = (distance <= problem.eps).view(-1, *[1] * (problem.x.dim() - 1))
    return Perturbed(torch.where(inside, x_adv, problem.x), distance=distance)


def autoattack_attempt(spec: AttackSpec, problem: Problem) -> Perturbed:
    """The library's attack of this name."""
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
