"""The first losses of every method: whatever changes a recipe, an augmentation, an initialisation or a loss shows here.

``python tests/methods/test_golden_losses.py`` writes them again.
"""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from clead.cli import Plan
from clead.engine.loop import batches
from clead.engine.optim import build_optimizer, learning_rate
from clead.engine.progress import Progress
from clead.methods import METHODS
from clead.recipes import RECIPES
from clead.sources import Sources
from clead.stages import pretraining
from clead.train import prepare

FILE = Path(__file__).with_name("golden_losses.json")
STEPS, IMAGES = 2, 16
# Float64 on AVX-512, AVX2 and SSE4 agrees to 1e-14; float32 alone would not: a last bit turns the sign of an attack's
# step or puts an image into another cluster, which moved losses by up to 8e-4.
RELATIVE = 1e-6


@pytest.fixture(scope="module")
def sources():
    return Sources()


def first_losses(name, sources):
    """The terms of the first steps of ``clead.train NAME``, on the first images of each batch, in float64."""
    recipe = RECIPES[f"{name}_digits"]
    config = replace(recipe.config, device="cpu")
    plan = Plan(name, recipe.name, config, Path("unused"), resume=False, overwrite=False)
    session, model = prepare(plan, Progress(), "trained", sources)
    images = session.splits.train.batch
    task = replace(pretraining(session, model.double()), images=lambda samples: images(samples).double())
    session.method.start_epoch(model, task.images, len(task.labels), epoch=0)
    optimizer = build_optimizer(list(model.parameters()), task.optimizer)
    losses = []
    task.train_mode()
    for step, batch in islice(batches(task, 0), STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(task.optimizer, step, task.steps_per_epoch, task.epochs)
        first = (batch.images[:IMAGES], batch.labels[:IMAGES], batch.sample_ids[:IMAGES])
        terms = task.loss(replace(batch, images=first[0], labels=first[1], sample_ids=first[2]))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        losses.append({name: term.item() for name, term in terms.items()})
    return losses


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_first_losses_are_those_of_the_file(name, sources):
    expected = json.loads(FILE.read_text())[name]
    assert first_losses(name, sources) == [pytest.approx(terms, rel=RELATIVE) for terms in expected]


if __name__ == "__main__":
    loaded = Sources()
    lines = [f"{json.dumps(name)}: {json.dumps(first_losses(name, loaded))}" for name in sorted(METHODS)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
