"""Weighted k-nearest-neighbour classification of frozen encodings.

Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, arXiv:1805.01978,
section 3.4; CLAE measures with k = 200 and a temperature of 0.1 (0.5 for SimCLR).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from clead.config import Encoding, Impl, KNNConfig
from clead.data import Dataset
from clead.engine.results import Row, make_row
from clead.models import Model
from clead.protocols.encode import encode
from clead_kernels import similarity_topk


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    impl: Impl = "auto",
    batch_size: int = 500,
) -> Tensor:
    """The class with most weight among the k nearest rows of ``bank``, each voting with exp(cosine / temperature).

    Args:
        queries: [M, d].
        bank: [N, d].
        labels: of the bank, int64 [N].
        k: number of neighbours; all N where there are fewer.
        temperature: of the weights.
        num_classes: number of classes.
        impl: implementation of ``similarity_topk``.
        batch_size: queries at once.

    Returns:
        int64 [M].
    """
    predictions = []
    for part in queries.split(batch_size):
        cosines, neighbours = similarity_topk(part, bank, min(k, len(bank)), impl=impl)
        # Less the largest cosine, so that no temperature overflows; the votes keep their proportions.
        weights = torch.exp((cosines - cosines[:, :1]) / temperature)
        votes = weights.new_zeros(len(part), num_classes).scatter_add_(1, labels[neighbours], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def knn(
    model: Model,
    train: Dataset,
    test: Dataset,
    config: KNNConfig,
    on: Encoding,
    *,
    branch: str,
    impl: Impl,
    key: dict[str, Any],
) -> Row:
    """Accuracy on ``test`` of the neighbours in ``train``, neither augmented.

    Args:
        model: with a ``projector`` for embeddings.
        train: the bank.
        test: the queries.
        config: neighbours and temperature.
        on: which encodings.
        branch: batch-norm branch.
        impl: implementation of ``similarity_topk``.
        key: fields of the row that are known (run, model, dataset, split).
    """
    start = time.perf_counter()
    head = "projector" if on == "embeddings" else None
    bank, queries = (encode(model, dataset, branch=branch, head=head) for dataset in (train, test))
    predicted = knn_predict(
        queries,
        bank,
        train.labels,
        k=config.k,
        temperature=config.temperature,
        num_classes=len(train.classes),
        impl=impl,
    )
    return make_row(
        **key,
        name="clean",
        protocol=f"knn_{on}",
        bn_branch=branch,
        dtype="float32",
        correct=int((predicted == test.labels).sum()),
        samples=len(test),
        seconds=time.perf_counter() - start,
    )
