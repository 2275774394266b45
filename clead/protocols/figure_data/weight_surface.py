"""The loss around the weights, along two random directions (ASCL's fig. 5).

Directions are normalised filter by filter: Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018,
arXiv:1712.09913, section 4. Otherwise the scale of a filter, which batch norm undoes, would look like flatness.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.attacks import frozen
from clead.protocols.figure_data.base import FigureData, Look
from clead.rng import Rng

IMAGES, POINTS, REACH = 100, 17, 0.5

Direction = dict[str, Tensor]


def weight_surface(look: Look) -> FigureData:
    """``loss`` float32 [G, G]: mean cross-entropy on test images at w + a d_1 + b d_2; ``axis`` [G] of a and b.

    1 on the axis is a step as long as the weights themselves, filter by filter. Biases, batch norm and its running
    statistics stay as they are.
    """
    x, labels, _ = look.images(IMAGES)
    classifier = look.subject.classifier

    def loss() -> Tensor:
        return F.cross_entropy(classifier.logits(x).double(), labels)

    first, second = (filter_direction(classifier.module, look.subject.seed, step) for step in (0, 1))
    axis = torch.linspace(-REACH, REACH, POINTS)
    surface = loss_surface(classifier.module, loss, first, second, axis)
    return FigureData({"loss": surface, "axis": axis}, {"images": str(len(x))})


def filter_direction(module: nn.Module, seed: int, step: int) -> Direction:
    """A standard normal direction, each filter (row of a weight) of it as long as the filter of the module."""
    direction = {}
    for index, (name, weight) in enumerate(module.named_parameters()):
        if weight.dim() > 1:
            ids = torch.arange(len(weight), device=weight.device)
            rows = Rng.create(seed, "eval_attack", ids, step).view(index).normal(weight[0].numel())
            length = weight.detach().flatten(1).norm(dim=1, keepdim=True)
            direction[name] = (F.normalize(rows, dim=1) * length).view_as(weight).to(weight.dtype)
    return direction


@torch.no_grad()
def loss_surface(
    module: nn.Module, loss: Callable[[], Tensor], first: Direction, second: Direction, axis: Tensor
) -> Tensor:
    """float32 [G, G]: ``loss()`` with the weights at w + a first + b second for a, b in ``axis`` [G].

    The module is in eval mode meanwhile; weights and modes come back bit for bit, also after an error.
    """
    weights = dict(module.named_parameters())
    originals = {name: weights[name].clone() for name in first}
    rows = []
    with frozen(module):
        try:
            for a in axis.tolist():
                row = []
                for b in axis.tolist():
                    for name, original in originals.items():
                        weights[name].copy_(original + a * first[name] + b * second[name])
                    row.append(loss().double())
                rows.append(torch.stack(row))
        finally:
            for name, original in originals.items():
                weights[name].copy_(original)
    return torch.stack(rows).float()
