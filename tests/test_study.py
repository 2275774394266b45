"""The study: what its numbers mean, and that it does not train twice."""

import json
from dataclasses import replace

import pytest
import torch

from clead import study
from clead.data import load_digits
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.loading import InputSpec, build_model, load
from clead.methods import METHODS
from clead.models import initialise
from clead.protocols.few_labels import few_labels
from clead.recipes import RECIPES, default_recipe


@pytest.fixture(scope="module")
def splits():
    return load_digits()


def untrained(splits):
    model = build_model(METHODS["simclr"](RECIPES["simclr_digits"].config), InputSpec.of(splits))
    initialise(model, seed=0)
    return model.eval()


def test_few_labels_of_perfect_and_of_empty_features(splits):
    model = untrained(splits)
    truth = {}
    for split in (splits.train, splits.test):
        for image, label in zip(split.batch(torch.arange(len(split))), split.labels, strict=True):
            truth[image.numpy().tobytes()] = int(label)

    def features(x, branch):
        return torch.nn.functional.one_hot(torch.tensor([truth[image.numpy().tobytes()] for image in x]), 10).float()

    model.features = features
    assert few_labels(model, splits, per_class=2, draws=2, branch="clean", seed=0) == 1.0
    model.features = lambda x, branch: torch.zeros(len(x), 3)
    counts = splits.test.labels.bincount() / len(splits.test)
    assert few_labels(model, splits, per_class=2, draws=2, branch="clean", seed=0) <= counts.max()


def test_contrastive_loss_without_an_attack_by_loops(splits, monkeypatch):
    monkeypatch.setattr(study, "EPS", 0.0)
    model = untrained(splits)
    small = replace(splits, test=splits.test.select(torch.arange(5)))
    with torch.no_grad():
        z = torch.nn.functional.normalize(model.embed(small.test.batch(torch.arange(5)), branch="clean").double())
    logits = z @ z.T / study.TEMPERATURE
    expected = -logits.log_softmax(1).diagonal().mean()
    assert study.contrastive_loss(model, small, "clean") == pytest.approx(expected.item(), rel=1e-5)


def test_an_attack_raises_the_contrastive_loss(splits, monkeypatch):
    model = untrained(splits)
    small = replace(splits, test=splits.test.select(torch.arange(40)))
    attacked = study.contrastive_loss(model, small, "clean")
    monkeypatch.setattr(study, "EPS", 0.0)
    assert attacked > study.contrastive_loss(model, small, "clean")


def test_a_finished_run_is_measured_again_but_not_trained(splits, tmp_path, monkeypatch):
    def short(method, data):
        recipe = default_recipe(method, data)
        config = recipe.config
        return replace(recipe, config=replace(config, epochs=1, linear_eval=replace(config.linear_eval, epochs=2)))

    monkeypatch.setattr(study, "default_recipe", short)
    for name in ("STEPS", "DRAWS"):
        monkeypatch.setattr(study, name, 2)
    folder = tmp_path / "simclr-s0"
    first = study.study("simclr", 0, folder, splits, Progress())
    weights = load(folder).state_dict()
    assert study.study("simclr", 0, folder, splits, Progress()) == first
    assert all(torch.equal(value, weights[key]) for key, value in load(folder).state_dict().items())
    assert json.loads((folder / "run.json").read_text())["state"] == "done"
    assert 0 <= first["pgd20"] <= first["clean"] <= 1


def test_the_table_by_hand():
    row = {"clean": 0.9, "pgd20": 0.5, "few_labels": 0.8}
    rows = [
        {"method": "ce", "seed": 0, **row, "contrastive_loss": None},
        {"method": "clead", "seed": 0, **row, "contrastive_loss": 1.0},
        {"method": "clead", "seed": 1, **row | {"pgd20": 0.6}, "contrastive_loss": 2.0},
    ]
    lines = study.to_markdown(rows, "the command").splitlines()
    assert "| `ce` | yes | 1 | 90.0 (90.0 … 90.0) | 50.0 (50.0 … 50.0) | 80.0 (80.0 … 80.0) | – |" in lines
    assert (
        "| `clead` | no | 2 | 90.0 (90.0 … 90.0) | 55.0 (50.0 … 60.0) | 80.0 (80.0 … 80.0) | 1.50 (1.00 … 2.00) |"
        in lines
    )


def test_an_unknown_method_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="unknown method 'simclear'"):
        study.main(["--methods", "simclear", "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
