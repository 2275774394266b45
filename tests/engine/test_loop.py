"""Choosing the best epoch, with scripted scores."""

import json

import pytest
import torch
from rich.console import Console

from clead.config import OptimizerConfig
from clead.engine.checkpoint import latest, load
from clead.engine.loop import Fit, fit
from clead.engine.progress import Progress
from clead.engine.run import RunFolder

SCORES = [0.1, 0.9, 0.5, 0.9]


def train(path, scores=SCORES, fail_at=None):
    """Four epochs of a line fitted to noise; (its weights after each epoch, those at the end)."""
    torch.manual_seed(0)
    x, model = torch.randn(40, 3), torch.nn.Linear(3, 1)
    after = []

    def score():
        after.append(model.weight.detach().clone())
        assert not model.training
        return scores[done() - 1]

    def done():
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["epoch"]

    def loss(batch):
        if batch.step == fail_at:
            raise KeyboardInterrupt
        return {"mse": (model(batch.images) - batch.labels[:, None]).square().mean()}

    task = Fit(
        stage="full_finetune",
        model=model,
        trained=model,
        loss=loss,
        images=x.__getitem__,
        labels=torch.arange(40) % 2,
        epochs=4,
        batch_size=10,
        optimizer=OptimizerConfig(lr=0.05, schedule="constant"),
        seed=0,
        checkpoint_every=1,
        meta={},
        score=score if scores else None,
    )
    with RunFolder.create(path, resume=True, overwrite=False) as folder:
        fit(task, folder, Progress(Console(quiet=True)))
    return after, model.weight.detach()


def test_the_result_is_the_first_epoch_with_the_highest_score(tmp_path):
    after, weights = train(tmp_path / "run")
    assert len(after) == 4 and torch.equal(weights, after[1]) and not torch.equal(weights, after[3])
    saved = load(latest(tmp_path / "run" / "checkpoints", "full_finetune"))
    assert saved.meta["selected"] == {"epoch": 2, "val_accuracy": 0.9} and saved.meta["epoch"] == 4
    assert torch.equal(saved.weights["weight"], weights)
    _, last = train(tmp_path / "last", scores=[])
    assert torch.equal(last, after[3])


@pytest.mark.parametrize("fail_at", [9, 13])
def test_the_best_epoch_survives_an_interruption(tmp_path, fail_at):
    _, weights = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", fail_at=fail_at)
    _, resumed = train(tmp_path / "broken")
    assert torch.equal(resumed, weights)
    assert torch.equal(train(tmp_path / "broken")[1], weights)  # and doing it again changes nothing
