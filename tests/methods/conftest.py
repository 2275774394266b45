import math
from dataclasses import replace

import pytest
import torch

from clead.data import load_digits
from clead.loading import InputSpec, build_model
from clead.methods import METHODS, Batch
from clead.models import initialise
from clead.recipes import RECIPES

SPEC = InputSpec(in_channels=1, num_classes=10, mean=(0.3,), std=(0.4,))


@pytest.fixture
def small():
    """(method, model, batch) on a few digits: float64, in eval mode, so that images do not affect each other."""

    def build(name, *, size=6, labels=None, progress=0.0, **changes):
        method = METHODS[name](replace(RECIPES[f"{name}_digits"].config, **changes))
        model = build_model(method, SPEC)
        initialise(model, seed=3)
        model.double().train()
        images = load_digits().train.batch(torch.arange(size)).double()
        branches = method.config.encoder.bn.branches
        for index, branch in enumerate(branches):  # no two alike
            scales = [p for key, p in model.named_parameters() if key.endswith(f".branch.{branch}.weight")]
            with torch.no_grad():
                for scale in scales:
                    scale += 0.2 * index * torch.arange(len(scale)).sin()
            for _ in range(20):  # statistics that fit the images, or all embeddings point the same way
                model.features((1 - 0.2 * index) * images, branch=branch)
        model.eval()
        labels = torch.tensor(labels) if labels else torch.arange(size) % 3
        return method, model, Batch(images, labels, torch.arange(size), step=2, seed=5, progress=progress)

    return build


@pytest.fixture
def contrastive_row():
    """-1/|P| sum_{p in P} log(e^{s_p} / sum_{a in A} e^{s_a}) by loops, s the cosine of the anchor over temperature."""

    def loss(anchor, candidates, positives, denominator, temperature):
        length = math.hypot(*anchor)
        s = [
            sum(p * q for p, q in zip(anchor, other, strict=True)) / length / math.hypot(*other) / temperature
            for other in candidates
        ]
        log_sum = math.log(sum(math.exp(s[a]) for a in denominator))
        return sum(log_sum - s[p] for p in positives) / len(positives)

    return loss


@pytest.fixture
def nt_xent_loops(contrastive_row):
    """NT-Xent of view-major rows by loops, a list; ``left_out`` are pairs (i, j) that leave the denominators."""

    def losses(rows, temperature, num_views=2, left_out=frozenset()):
        size, values = len(rows) // num_views, []
        for i in range(len(rows)):
            positives = [j for j in range(len(rows)) if j != i and j % size == i % size]
            denominator = [j for j in range(len(rows)) if j in positives or (j != i and (i, j) not in left_out)]
            values.append(contrastive_row(rows[i], rows, positives, denominator, temperature))
        return values

    return losses


@pytest.fixture
def check_attack():
    """x_adv stays in the linf ball and the box, and has a larger loss than x and any of ten random points of the ball.

    ``loss`` maps images to a float; the random points are corners of the ball, as far from x as x_adv may be.
    """

    def check(loss, x, x_adv, eps):
        assert ((x_adv - x).abs() <= eps * (1 + 1e-6)).all() and (x_adv >= 0).all() and (x_adv <= 1).all()
        generator = torch.Generator().manual_seed(1)
        noise = [torch.randn(x.shape, generator=generator, dtype=x.dtype).sign() for _ in range(10)]
        with torch.no_grad():
            assert loss(x_adv) > max(loss(other) for other in (x, *((x + eps * n).clamp(0, 1) for n in noise)))

    return check
