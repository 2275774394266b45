"""What adversarial and random perturbations do to the contrastive loss and to a classifier (CLAE's fig. 3).

An image's positive is its own perturbed version, its negatives are those of the other images of its batch; the
adversarial perturbation is CLAE's: one step along the sign of the gradient of that loss, which no label enters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import Constraint, Objective, attack, frozen
from clead.attacks.contrastive import info_nce_against
from clead.protocols.figure_data.base import FigureData, Look
from clead.rng import Rng

IMAGES, BATCH = 1024, 128
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the radius
KINDS = ("adversarial", "random")


def perturbation_losses(look: Look) -> FigureData:
    """``eps``, and of each of KINDS its ``…_contrastive`` and ``…_cross_entropy``: float32 [E], means over images.

    Perturbed images are kept in [0, 1]. A last batch of one image, which has no negatives, is left out.
    """
    radii = [share * look.eps for share in SHARES]
    sums = {f"{kind}_{loss}": torch.zeros(len(radii)).double() for kind in KINDS for loss in _LOSSES}
    x, labels, samples = look.images(IMAGES)
    kept = len(x) - (len(x) % BATCH == 1)
    for part in torch.arange(kept, device=x.device).split(BATCH):
        for index, eps in enumerate(radii):
            for kind in KINDS:
                losses = _losses(look, kind, x[part], labels[part], samples[part], eps)
                for name, value in zip(_LOSSES, losses, strict=True):
                    sums[f"{kind}_{name}"][index] += float(value.double().sum())
    tensors = {"eps": torch.tensor(radii)} | {name: (total / kept).float() for name, total in sums.items()}
    facts = {"images": str(kept), "batch": str(BATCH), "temperature": f"{look.subject.classifier.temperature:g}"}
    return FigureData(tensors, facts)


_LOSSES = ("contrastive", "cross_entropy")


def _losses(look: Look, kind: str, x: Tensor, labels: Tensor, samples: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The contrastive loss and the cross-entropy [B] of images perturbed with radius ``eps``."""
    classifier = look.subject.classifier
    _, encode = look.encoders()[-1]
    with frozen(classifier.module), torch.no_grad():
        anchors = encode(x)
    loss = info_nce_against(anchors, temperature=classifier.temperature, impl=look.subject.impl)
    objective = Objective(classifier.module, encode, loss)
    rng = Rng.create(look.subject.seed, "eval_attack", samples)
    if kind == "random":
        signs = rng.uniform(x[0].numel(), -1.0, 1.0).view_as(x).sign()
        perturbed = (x + eps * signs).clamp(0, 1)
    else:
        ball = Constraint("linf", eps)
        perturbed = attack(objective, x, constraint=ball, steps=1, step_size=eps, random_start=False, rng=rng)
    with torch.no_grad():
        return objective(perturbed), F.cross_entropy(classifier.predict(perturbed), labels, reduction="none")
