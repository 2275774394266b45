"""Epochs chosen on the test split, as CLAE's and AdvCL's codes do: only when asked for, and never in silence."""

import json
from dataclasses import replace

import pytest
import torch

from clead import train
from clead.cli import plans
from clead.data import load_digits
from clead.engine import checkpoint
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.loading import load
from clead.methods import METHODS
from clead.protocols.encode import encode
from clead.protocols.logistic_regression import fit_linear
from clead.recipes import RECIPES
from clead.report import load_rows, to_markdown

REGRESSION = ["--logistic-regression.on", "features", "--logistic-regression.epochs", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    short = [
        "--epochs",
        "3",
        "--train-samples",
        "256",
        "--linear-eval.epochs",
        "4",
        "--evaluation.attacks",
        "fgsm",
        "--evaluation.sweep-eps",
    ]
    return trained(["plain", "--paper-compat", *short, "--knn.on", "embeddings", *REGRESSION, "--out", str(out)])


def trained(command):
    (plan,) = plans([*command, "--device", "cpu"])
    return train.run(plan, Progress()).path


def rows(run):
    found = json.loads((run / "results.json").read_text())["results"]
    return {(row["protocol"], row["name"]): row for row in found if row["eps"] != 0.1}


def test_the_kept_epoch_is_the_best_on_the_test_split(run):
    for stage, name, epochs in (("pretrain", "knn_embeddings", 3), ("linear_eval", "linear_eval", 4)):
        selected = checkpoint.load(checkpoint.latest(run / "checkpoints", stage)).meta["selected"]
        assert selected.keys() == {"epoch", "test_accuracy"} and 1 <= selected["epoch"] <= epochs
        assert rows(run)[name, "clean"]["accuracy"] == selected["test_accuracy"]


def test_the_regression_is_that_of_the_best_epoch(run):
    splits, model = load_digits(), load(run, stage="pretrain")
    few = splits.train.select(torch.arange(256))
    x, x_test = (encode(model, dataset, branch="clean") for dataset in (few, splits.test))
    settings = replace(RECIPES["plain_digits"].config.logistic_regression, epochs=0)
    accuracies = []
    for epochs in (1, 2, 3):  # a constant rate: the first epochs of a longer fit are a shorter one
        classifier = fit_linear(x, few.labels, 10, replace(settings, epochs=epochs), seed=0)
        accuracies.append(float((classifier(x_test).argmax(1) == splits.test.labels).double().mean()))
    assert rows(run)["logistic_regression_features", "clean"]["accuracy"] == max(accuracies)


def test_every_row_and_the_table_say_so(run):
    assert all(row["flags"] == ["selected_on_test"] for row in rows(run).values())
    assert "Epochs were chosen on the test split, as the official code does" in to_markdown(load_rows(run))


def test_only_what_the_code_selects_is_flagged(tmp_path, capsys):
    few = ["--train-samples", "128", "--epochs", "1", "--linear-eval.epochs", "1", "--evaluation.attacks", "--knn.on"]
    few += ["features", "--evaluation.sweep-eps"]
    run = trained(["clae", "--paper-compat", *few, "--out", str(tmp_path / "clae")])
    flags = {protocol: row["flags"] for (protocol, _), row in rows(run).items()}
    assert flags == {"knn_features": [], "linear_eval": ["selected_on_test"]}
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("of the epoch that is best on the test split (paper_compat)") == 1


def test_it_is_off_in_every_recipe_and_refused_where_the_code_selects_nothing(tmp_path):
    assert not any(recipe.config.paper_compat for recipe in RECIPES.values())
    selecting = {name for name, cls in METHODS.items() if cls(RECIPES[f"{name}_digits"].config).selected_on_test}
    assert selecting == {"advcl", "clae", "plain", "uel"}
    with pytest.raises(UserError, match="paper_compat must be off with acl, whose code selects nothing"):
        train.main(["acl", "--paper-compat", "--out", str(tmp_path / "acl")])
