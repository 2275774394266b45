"""What image excites one component of the features most (ASCL's eq. 11 and fig. 2).

A component of a robust encoder draws the same pattern into any image; that of an undefended one draws noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clead.attacks import Constraint, Objective, attack
from clead.protocols.figure_data.base import FigureData, Look
from clead.rng import Rng

SEEDS, COMPONENTS, STEPS = 2, 4, 200
STEP = 0.02  # of the diagonal of the box of images
CHOICE = 500  # images among which components vary


def feature_inversion(look: Look) -> FigureData:
    """x' = argmax over images of g(x')_i, by ascent from a few images of different classes and from noise.

    ``seeds`` [S, C, H, W], ``inverted`` [S, K, C, H, W] in [0, 1], ``components`` int64 [K]: those that vary most over
    test images, ``before`` and ``after`` [S, K]: their values at the seed and at the end.
    """
    features = look.encodings(CHOICE)["features"]
    components = features.std(0, correction=0).topk(min(COMPONENTS, features.shape[1])).indices
    seeds = _seeds(look)
    many, rows = components.repeat(len(seeds)), seeds.repeat_interleave(len(components), 0)
    encode = look.subject.classifier.encodings["features"]
    objective = Objective(look.subject.classifier.module, encode, lambda z: z.gather(1, many[:, None]).squeeze(1))
    diagonal = math.sqrt(seeds[0].numel())
    inverted = attack(
        objective,
        rows,
        constraint=Constraint("l2", diagonal),  # any image is that near, so only the box holds
        steps=STEPS,
        step_size=STEP * diagonal,
        random_start=False,
        rng=Rng.create(look.subject.seed, "eval_attack", torch.arange(len(rows), device=rows.device)),
        impl=look.subject.impl,
    )
    with torch.no_grad():
        before, after = (objective(x).view(len(seeds), -1) for x in (rows, inverted))
    shape = (len(seeds), len(components), *seeds.shape[1:])
    tensors = {"seeds": seeds, "inverted": inverted.view(shape), "components": components}
    return FigureData(tensors | {"before": before, "after": after}, {"steps": str(STEPS)})


def _seeds(look: Look) -> Tensor:
    """The first image of each of the first classes that occur, and uniform noise."""
    x, labels, samples = look.images(CHOICE)
    first = [int((labels == label).nonzero()[0]) for label in labels.unique()[:SEEDS]]
    noise = Rng.create(look.subject.seed, "eval_attack", samples[:1]).uniform(x[0].numel())
    return torch.cat([x[first], noise.view_as(x[:1])])
