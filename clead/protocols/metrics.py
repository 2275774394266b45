"""Numbers about encodings and about accuracies that are no accuracies themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 1024  # of the N x N distances that are in memory at once
_TINY = 1e-12

FORMULAS = {
    "alignment": "mean ||z(t(x)) - z(t'(x))||_2^2, z of length 1",
    "uniformity": "log mean over pairs i != j of exp(-2 ||z_i - z_j||_2^2), z of length 1",
    "class_distance_ratio": "mean ||z_i - z_j||_2 over pairs of different classes / over pairs i != j of one, |z| = 1",
    "relative_drop": "(clean - adversarial) / clean accuracy",
    "mean_corruption_accuracy": "mean of the accuracies over types and severities",
    "gap_closed": "(drop of baseline - drop) / (drop of baseline - drop of reference), of relative drops",
}


def alignment(z: Tensor, other: Tensor) -> float:
    """How near two views of an image are (Wang & Isola, arXiv:2005.10242, eq. 3 with alpha = 2): 0 is perfect, 4 worst.

    Args:
        z: encodings [N, d] of one view of each image.
        other: encodings [N, d] of another.
    """
    return float((_unit(z) - _unit(other)).square().sum(1).mean())


def uniformity(z: Tensor) -> float:
    """How evenly encodings [N, d] cover the sphere (arXiv:2005.10242, eq. 4 with t = 2): 0 where all are one point.

    Over the N (N - 1) ordered pairs of different images.
    """
    total = sum(float(torch.exp(-2 * part.square()).sum()) for part in distances(z))
    pairs = len(z) * (len(z) - 1)
    return float(torch.tensor((total - len(z)) / pairs, dtype=torch.float64).log())


def class_distance_ratio(z: Tensor, labels: Tensor) -> float:
    """Mean distance between images of different classes over that within a class (adaptive FNC's fig. 2).

    Args:
        z: encodings [N, d]; only their directions count.
        labels: int64 [N], two classes or more, one of them with two images.
    """
    between = within = 0.0
    for part, own in zip(distances(z), labels.split(_ROWS), strict=True):
        same = own[:, None] == labels[None]
        within += float(part[same].sum())  # each image is at 0 from itself
        between += float(part[~same].sum())
    alike = int(labels.bincount().square().sum())
    # A collapsed encoder keeps all pairs at distance 0: no class is apart from another, the ratio is 1.
    return (between / (len(z) ** 2 - alike) + _TINY) / (within / (alike - len(z)) + _TINY)


def relative_drop(clean: float, adversarial: float) -> float:
    """(clean - adversarial) / clean, of accuracies; 0 for a model that is never right."""
    return (clean - adversarial) / clean if clean else 0.0


def gap_closed(drop: float, *, baseline: float, reference: float) -> float:
    """(baseline - drop) / (baseline - reference), of relative drops: 0 as the baseline, 1 as the reference.

    Adaptive FNC's table 4 has SimCLR as the baseline and SupCon as the reference; its FGSM columns follow from its
    rounded percentages by this formula, its AutoAttack columns by none.
    """
    return (baseline - drop) / (baseline - reference) if baseline != reference else 0.0


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z.double(), dim=1)


def distances(z: Tensor) -> Iterator[Tensor]:
    """The rows of ||z_i - z_j||_2 [N, N], |z| = 1, in float64 and a few at a time; exactly 0 on the diagonal."""
    z = _unit(z)
    for start in range(0, len(z), _ROWS):
        part = z[start : start + _ROWS]
        squared = (2 - 2 * part @ z.T).clamp(min=0)
        squared.diagonal(start).zero_()
        yield squared.sqrt()
