"""Small classifiers whose robustness is known."""

import pytest
import torch
from torch import nn

from clead.data import Dataset
from clead.protocols.subject import Classifier, Subject


class Linear(nn.Module):
    """logits = [0, w·(x - 1/2)]: the distance to the boundary is |w·(x - 1/2)| over the dual norm of w."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def make_subject(module, images, labels, classes, **settings):
    dataset = Dataset("made/test", images, labels, tuple(map(str, range(classes))), 255)
    key = {"run": "r", "model": "trained", "protocol": "linear_eval", "dataset": "made", "split": "test", "seed": 3}
    samples = torch.arange(len(images))
    return Subject("r", Classifier(module, module), dataset, samples, key, 3, **settings)


@pytest.fixture(name="make_subject")
def make_subject_fixture():
    """(module, uint8 images, labels, number of classes) -> subject."""
    return make_subject


@pytest.fixture(scope="session")
def linear():
    """A linear subject, and the margin |w·(x - 1/2)| of each image, in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 4, 4, generator=generator)
    images = torch.randint(110, 146, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    scores = ((images.double() / 255 - 0.5) * weight.double()).flatten(1).sum(1)
    labels = (scores > 0).long()
    labels[:5] = 1 - labels[:5]  # wrong from the start
    return make_subject(Linear(weight), images, labels, 2), scores.abs()


@pytest.fixture(scope="session")
def network():
    """A small network fitted to separable noise of five classes; bends enough for attacks to differ."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(5, 1, 6, 6, generator=generator)
    labels = torch.arange(120) % 5
    noise = 0.35 * torch.randn(120, 1, 6, 6, generator=generator)
    images = ((centres[labels] + noise).clamp(0, 1) * 255).to(torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(40):
            adam.zero_grad()
            nn.functional.cross_entropy(module(images / 255), labels).backward()
            adam.step()
    module.zero_grad()
    return make_subject(module.eval(), images, labels, 5)
