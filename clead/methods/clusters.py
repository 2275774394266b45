"""k-means on the embeddings of a whole training split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from clead.attacks import frozen
from clead.models import Model
from clead.rng import Rng


@torch.no_grad()
def embed_all(
    model: Model,
    images: Callable[[Tensor], Tensor],
    size: int,
    *,
    branch: str,
    head: str | None = "projector",
    batch_size: int = 500,
) -> Tensor:
    """Unit-norm embeddings [size, d] of images 0 ... size - 1, not augmented, with batch norm in eval mode.

    Of ``head``, or the encoder's features where it is None.
    """
    device = next(model.parameters()).device
    encode = model.features if head is None else partial(model.embed, head=head)
    with frozen(model):
        parts = torch.arange(size, device=device).split(batch_size)
        return torch.cat([F.normalize(encode(images(part), branch=branch)) for part in parts])


def kmeans(embeddings: Tensor, clusters: int, rng: Rng, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """scikit-learn's k-means, from ``clusters`` different random rows as the first centroids.

    Args:
        embeddings: [N, d], of unit norm: the nearest centroid by distance is then nearly that by cosine.
        clusters: number of centroids, at most N.
        rng: a stream with one sample per row.
        previous: labels of an earlier clustering, int64 [N]: its clusters' means are the first centroids instead (a
            random row only where one has lost all members), so that clusters keep their numbers.

    Returns:
        labels, int64 [N] in [0, clusters), and centroids [clusters, d], both on the embeddings' device.
    """
    # Imported here: it takes as long as everything else together, and most commands never get here.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # which scikit-learn requires

    rows = embeddings.double().cpu()
    first = torch.argsort(rng.uniform(1)[:, 0].cpu(), stable=True)[:clusters]
    start = rows[first]
    if previous is not None:
        counts = previous.cpu().bincount(minlength=clusters)[:, None]
        sums = torch.zeros_like(start).index_add_(0, previous.cpu(), rows)
        start = torch.where(counts > 0, sums / counts, start)
    fitted = KMeans(clusters, init=start.numpy(), n_init=1, max_iter=100)
    with threadpool_limits(1):  # several threads would sum in an order that differs from run to run
        labels = fitted.fit_predict(rows.numpy())
    centroids = torch.from_numpy(fitted.cluster_centers_)
    return torch.from_numpy(labels).long().to(embeddings.device), centroids.to(embeddings)
