"""A linear classifier on the frozen encoder (C-LEAD's second stage)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.config import LinearEvalConfig
from clead.data import Dataset
from clead.engine.loop import Fit, fit
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.methods.base import Batch
from clead.models import LinearHead, Model, initialise


def linear_eval(
    model: Model,
    train: Dataset,
    config: LinearEvalConfig,
    *,
    branch: str,
    seed: int,
    num_classes: int,
    folder: RunFolder,
    progress: Progress,
    meta: dict[str, object],
) -> None:
    """Train ``model.heads["classifier"]`` with cross-entropy on the features of clean, unaugmented images.

    The encoder is frozen and in eval mode, so every image is encoded once.

    Args:
        model: its classifier head is replaced.
        train: the labelled training split.
        config: epochs, batch size, optimiser.
        branch: batch-norm branch of the encoder.
        seed: seed of the run.
        num_classes: width of the classifier.
        folder: the run.
        progress: where to show progress.
        meta: what a checkpoint says of the model.
    """
    model.eval()
    features = encode(model, train, branch=branch)
    head = LinearHead(features.shape[1], num_classes).to(features.device)
    initialise(head, seed)
    model.heads["classifier"] = head

    def loss(batch: Batch) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(head(batch.images), batch.labels)}

    task = Fit(
        stage="linear_eval",
        model=model,
        trained=head,
        loss=loss,
        images=lambda samples: features[samples],
        labels=train.labels,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        seed=seed,
        checkpoint_every=max(1, config.epochs),
        meta=meta,
    )
    fit(task, folder, progress)


@torch.no_grad()
def encode(model: Model, dataset: Dataset, *, branch: str, batch_size: int = 500) -> Tensor:
    """Features [N, feature_dim] of a whole split, in eval mode."""
    samples = torch.arange(len(dataset), device=dataset.labels.device)
    return torch.cat([model.features(dataset.batch(part), branch=branch) for part in samples.split(batch_size)])
