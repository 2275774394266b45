"""PGD in five lines: adversarial digits for a small classifier, exactly inside the ball and the image range."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from clead_kernels import pgd_step_, random_start_

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8] in [0, 1]
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def attack(x, y, *, eps, step_size, steps, norm="linf"):
    """Projected gradient ascent from a random point of the ball; the same bits whatever the batch."""
    x_adv = random_start_(torch.empty_like(x), x, eps=eps, norm=norm, seed=0)
    for _ in range(steps):
        (grad,) = torch.autograd.grad(cross_entropy(model(x_adv.requires_grad_()), y, reduction="sum"), x_adv)
        pgd_step_(x_adv.detach_(), grad, x, eps=eps, step_size=step_size, norm=norm)
    return x_adv


optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    loss = cross_entropy(model(images[:1297]), labels[:1297])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

x, y = images[1297:], labels[1297:]
print(f"clean: {(model(x).argmax(1) == y).float().mean().item():.1%}")
for norm, eps, step_size in (("linf", 0.1, 0.02), ("l2", 0.5, 0.1), ("l1", 2.0, 0.5)):
    x_adv = attack(x, y, eps=eps, step_size=step_size, steps=20, norm=norm)
    distance = torch.linalg.vector_norm((x_adv - x).flatten(1).double(), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], 1)
    robust = (model(x_adv).argmax(1) == y).float().mean().item()
    print(f"{norm} {eps}: {robust:.1%}, largest distance {distance.max().item():.4f}, pixels up to {x_adv.max():.1f}")
