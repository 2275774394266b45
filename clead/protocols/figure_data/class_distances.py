"""How far classes lie from each other and within themselves (the heat maps of adaptive FNC's fig. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.protocols.figure_data.base import FigureData, Look, NotApplicable
from clead.protocols.metrics import class_distance_ratio, distances

MOST = 10_000


def class_distances(look: Look) -> FigureData:
    """Per encoding a [K, K] matrix of mean distances under its name, float32, and the ratio among the facts."""
    _, labels, _ = look.images(MOST)
    counts = labels.bincount()
    if len(counts.nonzero()) < 2 or int(counts.max()) < 2:
        raise NotApplicable("needs images of two classes or more, and two of one class")
    classes = len(look.subject.test.classes)
    tensors, facts = {}, {}
    for name, z in look.encodings(MOST).items():
        tensors[name] = mean_distances(z, labels, classes).float()
        facts[f"ratio_{name}"] = f"{class_distance_ratio(z, labels):.4g}"
    return FigureData(tensors, facts)


def mean_distances(z: Tensor, labels: Tensor, classes: int) -> Tensor:
    """float64 [K, K]: the mean of ||z_i - z_j||_2 over pairs i != j of two classes, |z| = 1; NaN without a pair.

    Args:
        z: encodings [N, d]; only their directions count.
        labels: int64 [N], below ``classes``.
        classes: K.
    """
    member = F.one_hot(labels, classes).double()
    sums = torch.zeros(classes, classes, dtype=torch.float64, device=z.device)
    start = 0
    for part in distances(z):
        sums += member[start : start + len(part)].T @ part @ member
        start += len(part)
    count = member.sum(0)
    return sums / (torch.outer(count, count) - count.diag())
