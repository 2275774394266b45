"""k-means on the embeddings of a whole training split."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import frozen
from clead.models import Model
from clead.rng import Rng


@torch.no_grad()
def embed_all(
    model: Model, images: Callable[[Tensor], Tensor], size: int, *, branch: str, batch_size: int = 500
) -> Tensor:
    """Unit-norm embeddings [size, d] of images 0 ... size - 1, not augmented, with batch norm in eval mode."""
    device = next(model.parameters()).device
    with frozen(model):
        parts = torch.arange(size, device=device).split(batch_size)
        return torch.cat([F.normalize(model.embed(images(part), branch=branch)) for part in parts])


def kmeans(embeddings: Tensor, clusters: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """scikit-learn's k-means, from ``clusters`` different random rows as the first centroids.

    Args:
        embeddings: [N, d], of unit norm: the nearest centroid by distance is then nearly that by cosine.
        clusters: number of centroids, at most N.
        rng: a stream with one sample per row.

    Returns:
        labels, int64 [N] in [0, clusters), and centroids [clusters, d], both on the embeddings' device.
    """
    # Imported here: it takes as long as everything else together, and most commands never get here.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # which scikit-learn requires

    rows = embeddings.double().cpu()
    first = torch.argsort(rng.uniform(1)[:, 0].cpu(), stable=True)[:clusters]
    fitted = KMeans(clusters, init=rows[first].numpy(), n_init=1, max_iter=100)
    with threadpool_limits(1):  # several threads would sum in an order that differs from run to run
        labels = fitted.fit_predict(rows.numpy())
    centroids = torch.from_numpy(fitted.cluster_centers_)
    return torch.from_numpy(labels).long().to(embeddings.device), centroids.to(embeddings)
