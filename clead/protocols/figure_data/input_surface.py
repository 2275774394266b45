"""The loss around test images: along the sign of its gradient and along random signs (ASCL's fig. 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import Objective
from clead.protocols.figure_data.base import FigureData, Look
from clead.rng import Rng

IMAGES, POINTS = 100, 17


def input_surface(look: Look) -> FigureData:
    """``loss`` float32 [G, G]: mean cross-entropy at x + a sign(grad) + b r, r random signs; ``axis`` [G] of a and b.

    Rows go with a, columns with b; both reach twice eps, in pixels. Images are not clipped: this is the geometry of the
    function, inside and outside the box.
    """
    x, labels, samples = look.images(IMAGES)
    classifier = look.subject.classifier
    loss = Objective(
        classifier.module, classifier.logits, lambda logits: F.cross_entropy(logits, labels, reduction="none")
    )
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point).sum(), point)
    signs = Rng.create(look.subject.seed, "eval_attack", samples).uniform(x[0].numel(), -1.0, 1.0).view_as(x).sign()
    axis = torch.linspace(-2 * look.eps, 2 * look.eps, POINTS)
    surface = loss_surface(loss, x, gradient.sign(), signs, axis)
    return FigureData({"loss": surface, "axis": axis}, {"images": str(len(x))})


@torch.no_grad()
def loss_surface(loss: Callable[[Tensor], Tensor], x: Tensor, first: Tensor, second: Tensor, axis: Tensor) -> Tensor:
    """float32 [G, G]: the mean of ``loss(x + a first + b second)`` (losses [B]) for a, b in ``axis`` [G]."""
    rows = [[loss(x + a * first + b * second).double().mean() for b in axis.tolist()] for a in axis.tolist()]
    return torch.stack([torch.stack(row) for row in rows]).float()
