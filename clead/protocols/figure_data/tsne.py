"""Where the images of a test split lie in feature space, in two dimensions by t-SNE (ASCL's fig. 3)."""

from __future__ import annotations

import torch

from clead.protocols.figure_data.base import FigureData, Look, NotApplicable

MOST = 1000
LEAST = 7  # perplexity must stay below the number of images
PERPLEXITY = 30.0


def tsne(look: Look) -> FigureData:
    """``points`` float32 [N, 2] of the features of the first images, ``labels`` int64 [N]."""
    from sklearn.manifold import TSNE  # a second of imports that nobody else needs

    features = look.encodings(MOST)["features"].double().cpu()
    if len(features) < LEAST:
        raise NotApplicable(f"needs at least {LEAST} images, got {len(features)}")
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=look.subject.seed).fit_transform(features.numpy())
    points = torch.from_numpy(found).float()
    _, labels, _ = look.images(MOST)
    return FigureData({"points": points, "labels": labels}, {"perplexity": f"{perplexity:.3g}"})
