"""CLAE's logistic regression on frozen encodings: on features, or on the unit-norm embeddings of Plain and UEL.

Ho & Vasconcelos, "Contrastive learning with adversarial examples", NeurIPS 2020, arXiv:2010.12050. Its official code
reports the best epoch on the test split; this is the last one, unless ``on_test`` asks for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.config import Encoding, LogisticRegressionConfig
from clead.data import Dataset
from clead.engine.optim import build_optimizer, learning_rate
from clead.engine.results import Row, make_row
from clead.models import LinearHead, Model, initialise
from clead.protocols.encode import encode
from clead.rng import permutation


def logistic_regression(
    model: Model,
    train: Dataset,
    test: Dataset,
    config: LogisticRegressionConfig,
    on: Encoding,
    *,
    branch: str,
    seed: int,
    key: dict[str, Any],
    on_test: bool = False,
) -> Row:
    """Accuracy on ``test`` of a linear classifier fitted on encodings of ``train``, neither augmented.

    Args:
        model: with a ``projector`` for embeddings.
        train: fitted on this.
        test: measured on this.
        config: epochs, batch size, optimiser.
        on: which encodings; embeddings are normalised first.
        branch: batch-norm branch.
        seed: of the initial weights and the order.
        key: fields of the row that are known (run, model, dataset, split).
        on_test: report the epoch that is best on ``test``.
    """
    start = time.perf_counter()
    head = "projector" if on == "embeddings" else None
    x_train, x_test = (encode(model, dataset, branch=branch, head=head) for dataset in (train, test))
    if on == "embeddings":
        x_train, x_test = F.normalize(x_train), F.normalize(x_test)
    counts: list[int] = []

    def count(classifier: LinearHead) -> None:
        with torch.no_grad():
            counts.append(int((classifier(x_test).argmax(1) == test.labels).sum()))

    classifier = fit_linear(x_train, train.labels, len(train.classes), config, seed, count if on_test else None)
    if not counts:
        count(classifier)
    return make_row(
        **key,
        name="clean",
        protocol=f"logistic_regression_{on}",
        bn_branch=branch,
        dtype="float32",
        seed=seed,
        correct=max(counts),
        samples=len(test),
        seconds=time.perf_counter() - start,
    )


def fit_linear(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    config: LogisticRegressionConfig,
    seed: int,
    after_epoch: Callable[[LinearHead], None] | None = None,
) -> LinearHead:
    """The classifier of features [N, d] and labels int64 [N], after the last epoch; ``after_epoch`` sees every one."""
    classifier = LinearHead(x.shape[1], num_classes).to(x)
    initialise(classifier, seed)
    optimizer = build_optimizer(classifier.parameters(), config.optimizer)
    batch_size = min(config.batch_size, len(x))
    steps_per_epoch = len(x) // batch_size
    for epoch in range(config.epochs):
        order = permutation(seed, len(x), epoch, x.device)
        for index in range(steps_per_epoch):
            samples = order[index * batch_size : (index + 1) * batch_size]
            for group in optimizer.param_groups:
                step = epoch * steps_per_epoch + index
                group["lr"] = learning_rate(config.optimizer, step, steps_per_epoch, config.epochs)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(classifier(x[samples]), labels[samples]).backward()
            optimizer.step()
        if after_epoch is not None:
            after_epoch(classifier)
    return classifier
