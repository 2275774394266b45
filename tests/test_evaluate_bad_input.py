"""What is wrong with the input is one sentence on standard error and exit code 2; what was measured before stays."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from clead import data, train
from clead.attacks import autoattack
from clead.cli import Plan
from clead.config import EvaluationConfig
from clead.data import load_digits
from clead.engine import checkpoint
from clead.engine.progress import Progress
from clead.errors import run_command
from clead.evaluate.command import main
from clead.recipes import RECIPES

FEW = ["--attacks", "fgsm", "--eps", "0.1", "--samples", "20"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run of no steps."""
    out = tmp_path_factory.mktemp("runs") / "main"
    config = replace(RECIPES["ce_digits"].config, epochs=0, evaluation=EvaluationConfig(attacks=(), samples=20))
    train.run(Plan("ce", "ce_digits", config, out, False, False), Progress(Console(quiet=True)))
    return out


@pytest.fixture
def run(untrained, tmp_path):
    return shutil.copytree(untrained, tmp_path / "main")


@pytest.fixture
def command(monkeypatch, capsys):
    """(arguments) -> (exit code, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["clead.evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        return stopped.value.code, capsys.readouterr().err

    return call


def rows(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def changed_weights(run, change):
    path = checkpoint.latest(run / "checkpoints")
    saved = checkpoint.load(path)
    meta = {key: value for key, value in saved.meta.items() if key not in ("schema", "sha256")}
    checkpoint.save(run / "checkpoints", meta, change(saved.weights), saved.state)


def is_one_sentence(found, *words):
    code, error = found
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error


def test_a_damaged_checkpoint(run, command):
    before = rows(run)
    file = checkpoint.latest(run / "checkpoints") / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    is_one_sentence(command(run, *FEW), "weights.safetensors", "truncated or altered")
    assert rows(run) == before


def test_a_classifier_of_another_number_of_classes(run, command):
    def fewer(weights):
        heads = {name: weights[f"heads.classifier.{name}"][:7] for name in ("weight", "bias")}
        return {**weights, **{f"heads.classifier.{name}": value.clone() for name, value in heads.items()}}

    before = rows(run)
    changed_weights(run, fewer)
    is_one_sentence(command(run, *FEW), "expected logits of the 10 classes of digits/test, found 7")
    assert rows(run) == before


@pytest.mark.parametrize("wrong", [10, -1])
def test_labels_out_of_range(wrong, run, command, monkeypatch):
    def broken(data_dir=None, *, download=False, image_size=None):
        splits = load_digits()
        labels = splits.test.labels.clone()
        labels[3] = wrong
        return replace(splits, test=replace(splits.test, labels=labels))

    monkeypatch.setitem(data.DATASETS, "digits", broken)
    is_one_sentence(command(run, *FEW), "labels must be in 0 … 9", str(wrong))


def test_logits_that_are_no_numbers_come_after_the_rows_of_another_model(run, command, tmp_path):
    good = shutil.copytree(run, tmp_path / "good")
    changed_weights(run, lambda weights: {**weights, "heads.classifier.bias": torch.full((10,), torch.nan)})
    found = command(good, run, *FEW, "--out", tmp_path / "out")
    is_one_sentence(found, "main: the model must give finite logits, got NaN or infinity for 20 of 20 images")
    assert [(row["run"], row["name"]) for row in rows(tmp_path / "out")] == [("good", "clean"), ("good", "fgsm")]


def test_a_fine_tuning_that_cannot_be_comes_after_the_rows_of_the_attacks(run, command):
    found = command(run, *FEW, "--protocols", "attacks,full_finetune", "--full-finetune.data", "cifar")
    is_one_sentence(found, "unknown data set 'cifar'")
    assert [row["name"] for row in rows(run)] == ["clean", "fgsm"]
    found = command(run, *FEW, "--protocols", "full_finetune", "--full-finetune.batch-size", "0", "--out", run / "out")
    is_one_sentence(found, "full_finetune.batch_size must be at least 2, got 0")
    assert not (run / "out").exists()


def test_a_broken_image_among_good_ones(run, command, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEAD_CACHE", str(tmp_path / "cache"))
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (10 * index, 0, 0)).save(tmp_path / "images" / part / name / f"{index}.png")
    (tmp_path / "images" / "val" / "b" / "2.png").write_bytes(b"no image")
    (tmp_path / "theirs.py").write_text("import torch\ndef build():\n    return torch.nn.Flatten()\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--data", "folder", "--data-dir", tmp_path / "images", "--image-size", "8", "--out", tmp_path / "out"]
    is_one_sentence(command("theirs:build", *arguments, *FEW), "2.png")
    assert not (tmp_path / "out").exists()


def test_a_missing_library(run, command, monkeypatch):
    before = rows(run)
    monkeypatch.setattr(autoattack.importlib.util, "find_spec", lambda name: None)
    found = command(run, "--attacks", "fgsm,autoattack", "--eps", "0.1", "--samples", "20")
    is_one_sentence(found, "need the library pyautoattack 0.2.0, found none: pip install pyautoattack==0.2.0")
    assert rows(run) == before


def test_a_training_that_asks_for_a_missing_library_is_refused_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(autoattack.importlib.util, "find_spec", lambda name: None)
    arguments = ["simclr", "--evaluation.attacks", "pgd20", "autoattack", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["clead.train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        run_command(train.main)
    assert "need the library pyautoattack" in capsys.readouterr().err and not (tmp_path / "run").exists()
