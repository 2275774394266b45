"""SimCLR with incremental false-negative detection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.config import ContrastiveConfig, require
from clead.methods.base import Batch
from clead.methods.clusters import embed_all, kmeans
from clead.methods.contrastive import ContrastiveMethod
from clead.models import Model
from clead.rng import Rng
from clead_kernels import FalseNegatives, nt_xent


class IFND(ContrastiveMethod["IFND.Config"]):
    """NT-Xent without the negatives that k-means puts into the anchor's cluster, more of them as training goes on.

    Chen et al., "Incremental false negative detection for contrastive learning", ICLR 2022, arXiv:2106.03719, with
    c_i the cluster of image i and r the share of images whose cluster is trusted:

        L = mean over k of 1/2N sum_i -log( e^{s_i+} / sum_{j: not (c_j = c_i and both trusted)} e^{s_ij} )

    Trusted are the most confident images, by the softmax over cosine / temperature to all centroids at the image's own
    one; r grows linearly from 0 to 1 over training. Settled here, without the official code: k-means runs at every
    granularity of ``clusters`` on the projected embeddings of unaugmented images, every ``refresh_epochs`` epochs,
    from the first on; the granularities' losses are averaged; false negatives are eliminated, not attracted.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """IFND."""

        clusters: tuple[int, ...] = (10, 50, 100)
        """Numbers of clusters, one k-means each."""
        refresh_epochs: int = 10
        """Epochs between two clusterings."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.clusters != () and min(self.clusters) > 0, "clusters", "numbers above 0", self.clusters)
            require(self.refresh_epochs > 0, "refresh_epochs", "above 0", self.refresh_epochs)

    paper = "Chen et al., ICLR 2022, arXiv:2106.03719"
    ops = ("nt_xent",)

    def __init__(self, config: IFND.Config) -> None:
        super().__init__(config)
        self.pseudo_labels = torch.empty(0, 0, dtype=torch.int64)
        self.doubt = torch.empty(0, 0)

    def start_epoch(self, model: Model, images: Callable[[Tensor], Tensor], size: int, epoch: int) -> None:
        """Cluster the training split: ``pseudo_labels`` and ``doubt``, [granularities, size] each.

        ``doubt`` is the rank of an image's confidence among all, 0 for the most confident, below 1.
        """
        if epoch % self.config.refresh_epochs:
            return
        embeddings = embed_all(model, images, size, branch=self.clean_branch)
        samples = torch.arange(size, device=embeddings.device)
        rng = Rng.create(self.config.seed, "kmeans", samples, step=epoch)
        labels, doubt = [], []
        for level, clusters in enumerate(self.config.clusters):
            own, centroids = kmeans(embeddings, clusters, rng.view(level))
            cosines = embeddings @ F.normalize(centroids).mT
            confidence = (cosines / self.config.temperature).softmax(1).gather(1, own[:, None])[:, 0]
            labels.append(own)
            doubt.append(confidence.argsort(descending=True, stable=True).argsort() / size)
        self.pseudo_labels, self.doubt = torch.stack(labels), torch.stack(doubt)

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The mean over granularities, on both views in one forward pass."""
        embeddings = model.embed(self.views(batch), branch=self.clean_branch)
        trusted = self.doubt[:, batch.sample_ids] < batch.progress
        labels = torch.where(trusted, self.pseudo_labels[:, batch.sample_ids], -1)
        self.log_cancelled(batch, embeddings, FalseNegatives(labels=labels))
        losses = [
            nt_xent(
                embeddings,
                temperature=self.config.temperature,
                false_negatives=FalseNegatives(labels=level),
                impl=self.config.impl,
            )
            for level in labels
        ]
        return {"nt_xent": torch.stack(losses).mean()}

    @property
    def min_samples(self) -> int:
        """An image for every cluster."""
        return max(self.config.clusters)

    def state_dict(self) -> dict[str, Tensor]:
        """The clusters, which a later model cannot find again."""
        return {"pseudo_labels": self.pseudo_labels, "doubt": self.doubt}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the clusters."""
        self.pseudo_labels, self.doubt = state["pseudo_labels"], state["doubt"]
