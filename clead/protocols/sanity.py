"""Signs that a measured robustness is none: Carlini et al., "On evaluating adversarial robustness", arXiv:1902.06705.

Comparisons between attacks are paired and must be significant, see ``clead.protocols.paired``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clead.attacks import frozen
from clead.attacks.autoattack import available
from clead.losses import margin
from clead.protocols.attempts import cross_entropy
from clead.protocols.catalogue import find_attack
from clead.protocols.paired import beats
from clead.protocols.robustness import Outcome, attack_all
from clead.protocols.subject import Subject

_FEW = 0.01  # of the images
_USUAL_GAP = 10.0  # between the two largest logits of an image that is right
_SQUARE_IMAGES = 100
_QUICK_IMAGES = 500


@dataclass(frozen=True)
class Check:
    """One sign looked for.

    Attributes:
        flag: what rows of the model are flagged with where it is found.
        found: whether it is; None where it could not be decided.
        detail: the numbers behind it.
    """

    flag: str
    found: bool | None
    detail: str


def quick_checks(subject: Subject) -> Iterator[Check]:
    """What a few looks at logits and gradients of some images tell; part of every evaluation."""
    subject = replace(subject, samples=subject.samples[:_QUICK_IMAGES])
    images = subject.images
    right = subject.correct(images)
    logits, again = (_logits(subject, images) for _ in range(2))
    difference = _relative(logits, again)
    yield Check("random_outputs", difference > 1e-4, f"two looks at an image differ by up to {difference:.1e}")
    order = torch.arange(len(images), device=images.device).flip(0)
    part = max(1, min(7, len(images) // 2))
    shuffled = torch.cat([subject.classifier.predict(images[ids]) for ids in order.split(part)])[order]
    mixed = _relative(logits, shuffled)
    yield Check(
        "batch_dependent",
        None if difference > 1e-4 else mixed > 1e-3,
        f"in other batches logits differ by up to {mixed:.1e} (batch norm in train mode?)",
    )
    sums = (logits.sum(1) - 1).abs().max() < 1e-5
    softmax = bool(sums and logits.min() > -1e-5 and logits.max() < 1 + 1e-5)
    yield Check("softmax_outputs", softmax, "outputs in [0, 1] sum to 1" if softmax else "outputs are no probabilities")
    for flag, loss in (("vanishing_gradients", cross_entropy), ("zero_gradients", margin)):
        share = _zero_gradients(subject, loss, right)
        yield Check(
            flag, share >= _FEW, f"{share:.1%} of the images that are right have no gradient of {loss.__name__}"
        )


def thorough_checks(subject: Subject, norm: str, eps: float, others: Sequence[Subject] = ()) -> Iterator[Check]:
    """What attacks that must be stronger or weaker than each other tell.

    Args:
        subject: the model.
        norm: the ball.
        eps: its radius.
        others: models of the same images, for transfer.
    """
    pgd, more, fgsm = (find_attack(name, norm=norm) for name in ("pgd20", "pgd100", "fgsm"))
    noise = replace(pgd, name="noise", steps=0, restarts=10)
    clean = subject.correct(subject.images)
    white = attack_all(subject, pgd, eps, correct=clean, skip=False)

    def beaten(flag: str, name: str, robust: Tensor, champion: Tensor = white.robust, by: str = "PGD-20") -> Check:
        champion = champion[: len(robust)]
        return Check(flag, beats(robust, champion), f"{name} {_accuracy(robust)}, {by} {_accuracy(champion)}")

    random = attack_all(subject, noise, eps, correct=clean)
    yield beaten("noise_beats_pgd", "random noise", random.robust)
    if norm != "l1":
        yield beaten("fgsm_beats_pgd", "FGSM", attack_all(subject, fgsm, eps, correct=clean).robust)
    longer = attack_all(subject, more, eps, correct=clean).robust
    yield Check(
        "more_steps_are_weaker",
        beats(white.robust, longer),
        f"PGD-100 {_accuracy(longer)}, PGD-20 {_accuracy(white.robust)}",
    )
    yield _loss_rises(subject, white, attack_all(subject, replace(noise, restarts=1), eps, correct=clean, skip=False))
    wider = attack_all(subject, pgd, 4 * eps, correct=clean).robust
    least = max(10, int(0.05 * len(clean)))  # fewer images than that cannot fall significantly
    flat = None if int(white.robust.sum()) < least else not beats(wider, white.robust)
    yield Check(
        "no_fall_with_eps", flat, f"PGD-20 {_accuracy(white.robust)}, at four times the radius {_accuracy(wider)}"
    )
    if norm == "linf":
        everything = replace(find_attack("pgd50"), relative_step=2.5 / 50)
        left = attack_all(subject, everything, 1.0, correct=clean).robust
        yield Check("eps_1_is_survived", beats(torch.zeros_like(left), left), f"PGD-50 at eps 1 {_accuracy(left)}")
    rescaled = attack_all(_rescaled(subject, clean), pgd, eps, correct=clean).robust
    yield beaten("scale_sensitive", "PGD-20 on rescaled logits", rescaled)
    # Of a model that is unsure, the margin is honestly the better objective.
    both = attack_all(subject, replace(pgd, perturb=find_attack("cw").perturb), eps, correct=white.robust).robust
    by = "PGD-20 and CW-20"
    if available():
        few = replace(subject, samples=subject.samples[:_SQUARE_IMAGES])
        square = attack_all(few, find_attack("square", norm=norm), eps)
        yield beaten("square_beats_white_box", "Square", square.robust, both, by)
    for other in others:
        made = attack_all(other, pgd, eps, skip=False)
        shown = clean & subject.correct(made.x_adv)
        yield beaten("transfer_beats_white_box", f"PGD-20 from {other.key['run']}", shown, both, by)


def _logits(subject: Subject, images: Tensor) -> Tensor:
    return torch.cat([subject.classifier.predict(part) for part in images.split(subject.batch_size)])


def _relative(logits: Tensor, others: Tensor) -> float:
    return float((logits - others).norm(dim=1).div(logits.norm(dim=1) + 1e-10).max())


def _accuracy(robust: Tensor) -> str:
    return f"{float(robust.double().mean()):.1%}"


def _zero_gradients(subject: Subject, loss: Callable[[Tensor, Tensor], Tensor], right: Tensor) -> float:
    """The share of the images that are right whose gradient of ``loss`` is exactly zero."""
    images, labels = subject.images[right], subject.labels[right]
    zero = 0
    for part, own in zip(images.split(subject.batch_size), labels.split(subject.batch_size), strict=True):
        with frozen(subject.classifier.module), torch.enable_grad():
            point = part.clone().requires_grad_()
            (grad,) = torch.autograd.grad(loss(subject.classifier.logits(point), own).sum(), point)
        zero += int((grad.flatten(1) == 0).all(1).sum())
    return zero / max(1, len(images))


def _loss_rises(subject: Subject, white: Outcome, noise: Outcome) -> Check:
    means = [
        float(cross_entropy(_logits(subject, images), subject.labels).double().mean())
        for images in (subject.images, noise.x_adv, white.x_adv)
    ]
    sentence = "mean cross-entropy {:.4g} on clean, {:.4g} on noisy, {:.4g} on PGD-20 images".format(*means)
    return Check("loss_does_not_rise", means[2] <= max(means[0], means[1]), sentence)


def _rescaled(subject: Subject, right: Tensor) -> Subject:
    """The same decisions, from logits whose two largest differ by no more than those of common models do."""
    best = _logits(subject, subject.images)[right if bool(right.any()) else slice(None)].topk(2, dim=1).values
    factor = min(1.0, _USUAL_GAP / max(1e-12, float((best[:, 0] - best[:, 1]).median())))
    classifier = subject.classifier
    return replace(subject, classifier=replace(classifier, logits=lambda x: factor * classifier.logits(x)))
