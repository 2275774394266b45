"""The stages after pre-training through the command: transfer, resuming, what is measured, bad input."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import clead
from clead import data, train
from clead.cli import plans
from clead.config import FinetuneConfig
from clead.data import Dataset, load_digits
from clead.engine import checkpoint, loop
from clead.engine.progress import Progress
from clead.errors import run_command

FEW = ["--evaluation.samples", "30", "--evaluation.attacks", "pgd2", "--evaluation.eps", "0.1"]
FEW += ["--evaluation.sweep-eps"]
SHORT = ["--adv-finetune.epochs", "2", "--adv-finetune.batch-size", "100", "--adv-finetune.attack.steps", "1"]
SHORT += ["--adv-finetune.attack.eps", "0.15", "--checkpoint-every", "1"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pre-trained encoder with two branches and nothing else."""
    out = tmp_path_factory.mktemp("runs") / "simclr"
    branches = ["--encoder.bn.branches", "clean", "adv"]
    command("simclr", "--epochs", "1", "--train-samples", "300", *branches, "--stages", "pretrain", "--out", str(out))
    return out


@pytest.fixture
def run(pretrained, tmp_path):
    """A copy of it to go on with."""
    return shutil.copytree(pretrained, tmp_path / "run")


def command(*argv):
    """The command without its table and figures."""
    (plan,) = plans(argv)
    train.run(plan, Progress(Console(quiet=True)))


def resume(run, *flags):
    command("simclr", "--resume", "--out", str(run), *flags)


def rows(run):
    return json.loads((run / "results.json").read_text())["results"]


def seven_letters(data_dir=None, *, download=False):
    """Another data set: larger images, fewer classes, no validation split."""
    generator = torch.Generator().manual_seed(0)
    digits = load_digits()

    def part(name, size):
        images = torch.randint(0, 256, (size, 1, 12, 12), generator=generator, dtype=torch.uint8)
        return Dataset(f"letters/{name}", images, torch.arange(size) % 7, tuple("abcdefg"), 255)

    return replace(digits, train=part("train", 300), val=part("val", 0), test=part("test", 50))


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "letters", seven_letters)


def test_every_classifier_is_evaluated_under_its_own_name(run, letters):
    stages = ["--stages", "linear_eval", "adv_finetune", "evaluate", "--linear-eval.epochs", "1"]
    probes = ["--knn.on", "features", "embeddings", "--logistic-regression.on", "embeddings"]
    probes += ["--logistic-regression.epochs", "1"]
    resume(run, *stages, *SHORT, *FEW, "--adv-finetune.data", "letters", *probes)
    seen = [(row["protocol"], row["dataset"], row["name"], row["samples"]) for row in rows(run)]
    assert seen == [
        ("knn_features", "digits", "clean", 30),
        ("knn_embeddings", "digits", "clean", 30),
        ("logistic_regression_embeddings", "digits", "clean", 30),
        ("linear_eval", "digits", "clean", 30),
        ("linear_eval", "digits", "pgd2", 30),
        ("adv_finetune", "letters", "clean", 30),
        ("adv_finetune", "letters", "pgd2", 30),
    ]
    assert {row["bn_branch"] for row in rows(run)} == {"clean"}

    transferred, linear = clead.load(run), clead.load(run, stage="linear_eval")
    assert transferred.heads["classifier"].weight.shape[0] == 7
    assert linear.heads["classifier"].weight.shape[0] == 10
    before = clead.load(run, stage="pretrain").encoder.state_dict()
    assert all(torch.equal(before[key], value) for key, value in linear.encoder.state_dict().items())
    assert not torch.equal(before["conv1.weight"], transferred.encoder.state_dict()["conv1.weight"])
    meta = checkpoint.load(checkpoint.latest(run / "checkpoints")).meta["model"]
    assert meta["classifier"] == {"protocol": "adv_finetune", "dataset": "letters"}

    measured = {row["name"] + row["protocol"]: row["seconds"] for row in rows(run)}
    resume(run)  # nothing is measured twice, but for the neighbours
    again = {row["name"] + row["protocol"]: row["seconds"] for row in rows(run)}
    assert {key for key in again if again[key] != measured[key]} <= {"cleanknn_features", "cleanknn_embeddings"}


@pytest.mark.parametrize("stage", ["adv_linear_eval", "full_finetune", "adv_finetune"])
def test_resuming_a_stage_is_exact_to_the_last_bit(stage, run, tmp_path, monkeypatch):
    flag = stage.replace("_", "-")
    settings = ["--stages", stage, f"--{flag}.epochs", "3", f"--{flag}.batch-size", "100", "--checkpoint-every", "1"]
    settings += [f"--{flag}.augment", "digits", f"--{flag}.select", "best_val", f"--{flag}.val-fraction", "0.2"]
    settings += [] if stage == "full_finetune" else [f"--{flag}.attack.steps", "1", f"--{flag}.attack.eps", "0.15"]
    broken = shutil.copytree(run, tmp_path / "broken")
    resume(run, *settings)
    step = loop._step

    def interrupted(task, batch, *rest):
        if batch.step == 5:
            raise KeyboardInterrupt
        return step(task, batch, *rest)

    monkeypatch.setattr(loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resume(broken, *settings)
    monkeypatch.undo()
    resume(broken, "--stages", stage)
    a, b = (checkpoint.load(checkpoint.latest(path / "checkpoints", stage)) for path in (run, broken))
    assert a.weights.keys() == b.weights.keys() and a.meta["selected"] == b.meta["selected"]
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    metrics = [(path / "metrics.jsonl").read_text().splitlines() for path in (run, broken)]
    assert [json.loads(line)["loss"] for line in metrics[0]] == [json.loads(line)["loss"] for line in metrics[1]]


def test_a_classifier_not_yet_begun_may_be_asked_for_otherwise(run, capsys):
    begun = ["--stages", "full_finetune", "--full-finetune.epochs", "1"]
    resume(run, *begun, "--adv-finetune.beta", "3")
    saved = json.loads((run / "config.json").read_text())["values"]
    assert (saved["full_finetune"]["epochs"], saved["adv_finetune"]["beta"]) == (1, 3.0)
    assert status(["simclr", "--resume", "--out", str(run), "--full-finetune.epochs", "2"]) == 2
    assert "cannot resume with full_finetune" in one_line(capsys)


def test_without_any_classifier_there_is_nothing_to_attack(run, capsys):
    assert status(["simclr", "--resume", "--out", str(run), "--stages", "evaluate"]) == 2
    assert "evaluate needs a classifier; run the stage linear_eval first" in one_line(capsys)
    resume(run, "--stages", "evaluate", "--knn.on", "features")
    assert [row["protocol"] for row in rows(run)] == ["knn_features"]


def test_the_branch_of_a_stage_is_the_one_evaluated(tmp_path):
    out = tmp_path / "run"
    branches = ["--encoder.bn.branches", "clean", "adv", "--encoder.bn.evaluation-branch", "adv"]
    small = ["--epochs", "1", "--train-samples", "200", "--attack.steps", "1", "--linear-eval.epochs", "1"]
    stages = ["--linear-eval.branch", "clean", "--full-finetune.epochs", "1", *FEW, "--compare"]
    stages += ["--stages", "pretrain", "linear_eval", "full_finetune", "evaluate"]
    command("clead", *branches, *small, *stages, "--out", str(out))
    assert {row["protocol"]: row["bn_branch"] for row in rows(out)} == {"linear_eval": "clean", "full_finetune": "adv"}
    assert clead.load(out, stage="linear_eval").evaluation_branch == "clean"
    assert clead.load(out, stage="full_finetune").evaluation_branch == "adv"


# bad input


def status(argv):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["clead.train", *argv])
        run_command(train.main)
    return left.value.code


def one_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--adv-finetune.batch-size", "301"], "adv_finetune.batch_size must be at most the 300 training samples"),
        (["--adv-finetune.data", "cifer"], "unknown data set 'cifer'; the nearest is"),
        (["--adv-finetune.data", "rgb"], "adv_finetune.data must have images with 1 channels like digits, got 3"),
        (["--adv-finetune.data", "unlabelled"], "adv_finetune needs labels: expected one for every training image"),
        (
            ["--adv-finetune.data", "letters", "--adv-finetune.select", "best_val"],
            "adv_finetune.val_fraction must hold",
        ),
        (["--adv-finetune.val-fraction", "1"], "adv_finetune.val_fraction must be in [0, 1), got 1.0"),
        (["--adv-finetune.epochs", "-1"], "adv_finetune.epochs must be at least 0, got -1"),
        (["--adv-finetune.beta", "-1"], "adv_finetune.beta must be at least 0, got -1.0"),
        (["--adv-finetune.branch", "adv"], "adv_finetune.branch must be clean, which simclr trains, got 'adv'"),
        (["--adv-finetune.augment", "simclr"], "augmentation 'simclr' changes colours"),
        (["--adv-finetune.augment", "cropp"], "unknown augmentation 'cropp'"),
        (["--adv-finetune.optimizer.gamma", "0"], "gamma must be above 0"),
        (["--knn.k", "0"], "knn.k must be above 0, got 0"),
        (["--knn.on", "logits"], "--knn.on"),
    ],
)
def test_settings_that_do_not_fit_leave_the_run_as_it_was(flags, expected, run, letters, monkeypatch, capsys):
    def changed(**parts):
        return lambda data_dir=None, *, download=False: replace(seven_letters(), **parts)

    train_split = seven_letters().train
    rgb = replace(train_split, images=train_split.images.repeat(1, 3, 1, 1))
    monkeypatch.setitem(data.DATASETS, "rgb", changed(train=rgb))
    unlabelled = replace(train_split, labels=torch.full_like(train_split.labels, -1))
    monkeypatch.setitem(data.DATASETS, "unlabelled", changed(train=unlabelled))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    stages = ["--stages", "adv_finetune", "evaluate"]
    assert status(["simclr", "--resume", "--out", str(run), *stages, *flags]) == 2
    assert expected in one_line(capsys)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_embeddings_are_not_measured_where_there_is_no_projector(tmp_path, capsys):
    assert status(["ce", "--knn.on", "embeddings", "--out", str(tmp_path / "run")]) == 2
    assert "knn.on must be features, as ce has no projector" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method", "clead", "expected a checkpoint of the method 'simclr', found 'clead'"),
        ("encoder", "resnet18", "expected a checkpoint of the encoder 'digits_cnn', found 'resnet18'"),
        ("batch_norm", {"evaluation_branch": "pgd"}, "expected the evaluation_branch clean or adv, found 'pgd'"),
        ("batch_norm", 3, "expected the evaluation_branch clean or adv, found None"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(key, value, expected, run, capsys):
    file = checkpoint.latest(run / "checkpoints") / "meta.json"
    meta = json.loads(file.read_text())
    meta["model"][key] = value
    file.write_text(json.dumps(meta))
    assert status(["simclr", "--resume", "--out", str(run), "--stages", "linear_eval"]) == 2
    assert expected in one_line(capsys)
    assert checkpoint.latest(run / "checkpoints", "linear_eval") is None


def test_default_settings_are_the_official_codes():
    # ACL: TRADES with beta 6 and ten steps of 2/255, 25 epochs at 0.1, a tenth of it at 15 and 20.
    config = FinetuneConfig()
    assert (config.epochs, config.batch_size, config.zero_init) == (25, 128, True)
    assert [share * config.epochs for share in config.optimizer.milestones] == [15.0, 20.0]
