"""Supervised contrastive learning whose temperature is a parameter like any other."""

import math

import torch
from sklearn.datasets import load_digits
from torch import nn

from clead_kernels import similarity, sup_con

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16  # [1797, 64] in [0, 1]
labels = torch.tensor(digits.target)
train, test = slice(0, 1297), slice(1297, None)


class SupCon(nn.Module):
    """``sup_con`` with a learned temperature, which stays positive: the parameter is its logarithm."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, embeddings, labels):
        """The mean over rows that have a positive; embeddings [M, d], labels [M]."""
        return sup_con(embeddings, labels, temperature=self.log_temperature.exp(), reduction="mean_valid")


encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
criterion = SupCon()
optimizer = torch.optim.Adam([*encoder.parameters(), *criterion.parameters()], lr=3e-3)
for step in range(201):
    chosen = torch.randperm(1297)[:256]
    loss = criterion(encoder(images[train][chosen]), labels[train][chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.3f}, temperature {criterion.log_temperature.exp().item():.3f}")

with torch.no_grad():
    unit = nn.functional.normalize(encoder(images), dim=1)
    centres = torch.stack([unit[train][labels[train] == digit].mean(0) for digit in range(10)])
    found = similarity(unit[test], centres).argmax(1)
print(f"nearest class centre: {(found == labels[test]).float().mean().item():.1%} of the test images")
