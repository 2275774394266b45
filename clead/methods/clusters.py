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


def kmeans(embeddings: Tensor, clusters: int, rng: Rng, *, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """scikit-learn's k-means, at first from ``clusters`` different random rows as centroids.

    Args:
        embeddings: [N, d], of unit norm: the nearest centroid by distance is then nearly that by cosine.
        clusters: number of centroids, at most N.
        rng: a stream with one sample per row.
        start: int64 [N], clusters found before: their means are the first centroids, so that they keep their numbers.

    Returns:
        labels, int64 [N] in [0, clusters), and centroids [clusters, d], both on the embeddings' device.
    """
    # Imported here: it takes as long as everything else together, and most commands never get here.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # which scikit-learn requires

    rows = embeddings.double().cpu()
    first = rows[torch.argsort(rng.uniform(1)[:, 0].cpu(), stable=True)[:clusters]]
    if start is not None:
        member = F.one_hot(start.cpu(), clusters).double()
        counts = member.sum(0)[:, None]
        first = torch.where(counts > 0, member.mT @ rows / counts.clamp_min(1), first)
    fitted = KMeans(clusters, init=first.numpy(), n_init=1, max_iter=100)
    with threadpool_limits(1):  # several threads would sum in an order that differs from run to run
        labels = fitted.fit_predict(rows.numpy())
    centroids = torch.from_numpy(fitted.cluster_centers_)
    return torch.from_numpy(labels).long().to(embeddings.device), centroids.to(embeddings)
