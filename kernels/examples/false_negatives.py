"""False negatives: with ten classes a tenth of SimCLR's negatives are no negatives. Which rule finds them?"""

import torch
from sklearn.datasets import load_digits

from clead_kernels import FalseNegatives, cancelled, nt_xent

torch.manual_seed(0)
digits = load_digits()
chosen = torch.randperm(len(digits.target))[:256]
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1)[chosen]
labels = torch.tensor(digits.target)[chosen]
# Pixels less their mean serve as embeddings here; two views: as they are, and with noise. Row i and i + 256 belong.
pixels = images - images.mean(0)
embeddings = torch.cat([pixels, pixels + 2 * torch.randn_like(pixels)])

# Clusters by a few rounds of k-means, as pseudo-labels: one per image.
centres = pixels[:30].clone()
for _ in range(10):
    clusters = torch.cdist(pixels, centres).argmin(1)
    centres = torch.stack([pixels[clusters == k].mean(0) if (clusters == k).any() else centres[k] for k in range(30)])

rules = {
    "threshold 0.5": FalseNegatives(threshold=0.5),
    "threshold 0.7": FalseNegatives(threshold=0.7),
    "top 20": FalseNegatives(topk=20),
    "clusters": FalseNegatives(labels=clusters),
    "clusters and threshold 0.5": FalseNegatives(labels=clusters, threshold=0.5, combine="and"),
    "true classes": FalseNegatives(labels=labels),
}
print(f"SimCLR without a rule: loss {nt_xent(embeddings).item():.3f}, 510 negatives a row")
print(f"{'rule':28}{'cancelled':>10}{'precision':>10}{'recall':>8}{'loss':>8}")
for name, rule in rules.items():
    found = cancelled(embeddings, rule, labels=labels)
    loss = nt_xent(embeddings, false_negatives=rule)
    count = found.counts.double().mean().item()
    print(f"{name:28}{count:10.1f}{found.precision.item():10.1%}{found.recall.item():8.1%}{loss.item():8.3f}")

kept = FalseNegatives(threshold=0.7, treatment="weight", weight=0.5)
attracted = FalseNegatives(threshold=0.7, treatment="attract")
print(f"threshold 0.7 at half weight: loss {nt_xent(embeddings, false_negatives=kept).item():.3f}")
print(f"threshold 0.7 as positives: loss {nt_xent(embeddings, false_negatives=attracted).item():.3f}")
