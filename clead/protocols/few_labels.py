"""A linear head on a few labels per class: what the features alone are worth."""

from __future__ import annotations

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from clead.data import Splits
from clead.errors import UserError
from clead.models import Model
from clead.protocols.encode import encode
from clead.rng import permutation


def few_labels(model: Model, splits: Splits, *, per_class: int, draws: int, branch: str, seed: int) -> float:
    """Mean test accuracy of logistic regression on the features of ``per_class`` labelled training images.

    With all labels even an untrained encoder of the digits reaches 96%, which decides nothing; with two it does not.

    Args:
        model: its encoder is frozen.
        splits: labelled images to draw from, and the test split.
        per_class: labelled images per class.
        draws: how many random choices of them are averaged.
        branch: batch-norm branch of the encoder.
        seed: of the choices; the same for every model.

    Returns:
        Accuracy in [0, 1].

    Raises:
        UserError: a class has too few images.
    """
    classes, members = splits.train.labels.unique(return_counts=True)
    if int(members.min()) < per_class:
        scarce, name = int(members.argmin()), splits.train.name
        raise UserError(
            f"{name}: expected {per_class} images or more of every class, found {members[scarce]} of {classes[scarce]}"
        )
    model.eval()
    train, test = (encode(model, split, branch=branch).cpu().numpy() for split in (splits.train, splits.test))
    labels, truth = splits.train.labels.cpu(), splits.test.labels.cpu().numpy()
    accuracies = []
    for draw in range(draws):
        chosen = _choose(labels, per_class, seed, draw).numpy()
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        head.fit(train[chosen], labels.numpy()[chosen])
        accuracies.append(head.score(test, truth))
    return float(numpy.mean(accuracies))


def _choose(labels: Tensor, per_class: int, seed: int, draw: int) -> Tensor:
    """Indices of ``per_class`` random samples of every class."""
    order = permutation(seed, len(labels), draw, labels.device)
    return torch.cat([order[labels[order] == value][:per_class] for value in labels.unique()])
