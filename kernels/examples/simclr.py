"""SimCLR in a plain PyTorch loop: an encoder of handwritten digits learns without labels (seconds on a CPU)."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from clead_kernels import nt_xent, similarity_topk

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8] in [0, 1]
labels = torch.tensor(digits.target)
train, test = slice(0, 1297), slice(1297, None)

encoder = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
)
projector = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32))


def augment(x):
    """Another view: moved by up to a pixel, scaled in brightness, with noise."""
    windows = nn.functional.pad(x, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)  # [B, 1, 3, 3, 8, 8]
    down, right = torch.randint(3, (2, len(x)))
    moved = windows[torch.arange(len(x)), :, down, right]
    return moved * (0.6 + 0.8 * torch.rand(len(x), 1, 1, 1)) + 0.1 * torch.randn_like(x)


@torch.no_grad()
def accuracy():
    """Of the nearest training image by cosine of the features, on augmented test images."""
    encoder.eval()
    _, nearest = similarity_topk(encoder(augment(images[test])), encoder(images[train]), 1)
    encoder.train()
    return (labels[train][nearest[:, 0]] == labels[test]).float().mean().item()


optimizer = torch.optim.Adam([*encoder.parameters(), *projector.parameters()], lr=1e-2)
print(f"nearest neighbour before training: {accuracy():.1%}")
for step in range(1, 61):
    batch = images[train][torch.randperm(1297)[:256]]
    views = torch.cat([augment(batch), augment(batch)])  # view-major: row i and row i + 256 show the same image
    loss = nt_xent(projector(encoder(views)), temperature=0.2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
print(f"nearest neighbour after training: {accuracy():.1%}")
