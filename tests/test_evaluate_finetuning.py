"""The fine-tuning protocols of ``clead.evaluate``, on runs, checkpoints and official encoders."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import clead
from clead import data, train
from clead.cli import Plan, read_config
from clead.config import AttackConfig, EncoderConfig, EvaluationConfig
from clead.data import Dataset, load_digits
from clead.engine import checkpoint, loop
from clead.engine.progress import Progress
from clead.engine.results import KEY
from clead.errors import UserError
from clead.evaluate import finetuning
from clead.evaluate.command import main
from clead.models import BatchNormConfig
from clead.recipes import RECIPES

STAGES = ("linear_eval", "adv_linear_eval", "full_finetune", "adv_finetune")
FEW = ["--attacks", "pgd2", "--eps", "0.1", "--samples", "30"]
SHORT = {"epochs": 1, "batch_size": 100}


def seven_letters(data_dir=None, *, download=False, image_size=None):
    """Another data set: larger images, fewer classes, no validation split."""
    generator = torch.Generator().manual_seed(0)

    def part(name, size):
        images = torch.randint(0, 256, (size, 1, 12, 12), generator=generator, dtype=torch.uint8)
        return Dataset(f"letters/{name}", images, torch.arange(size) % 7, tuple("abcdefg"), 255)

    return replace(load_digits(), train=part("train", 300), val=part("val", 0), test=part("test", 50))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pre-trained encoder with two branches, whose classifiers would take one epoch."""
    out = tmp_path_factory.mktemp("runs") / "main"
    config = RECIPES["simclr_digits"].config
    attack = AttackConfig(eps=0.15, step_size=0.15, steps=1)
    stages = {name: replace(getattr(config, name), **SHORT) for name in STAGES}
    stages |= {name: replace(stages[name], attack=attack) for name in ("adv_linear_eval", "adv_finetune")}
    config = replace(
        config, epochs=1, train_samples=300, stages=("pretrain",), compare=(), checkpoint_every=1, **stages
    )
    config = replace(config, encoder=EncoderConfig("digits_cnn", BatchNormConfig(branches=("clean", "adv"))))
    config = replace(config, evaluation=EvaluationConfig(attacks=("pgd2",), eps=(0.1,), samples=30))
    train.run(Plan("simclr", "simclr_digits", config, out, False, False), Progress(Console(quiet=True)))
    return out


@pytest.fixture
def run(pretrained, tmp_path):
    return shutil.copytree(pretrained, tmp_path / "main")


def resume(run, *stages):
    """Further stages of a training, without its figures."""
    method, recipe, config = read_config(run / "config.json")
    train.run(Plan(method, recipe, replace(config, stages=stages), run, True, False), Progress(Console(quiet=True)))


def rows(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def same_but_for_time(one, other):
    """Whether rows say the same: all but seconds, versions and the name of the run."""
    left = {"seconds", "versions", "run"}
    return [{k: v for k, v in row.items() if k not in left} for row in one] == [
        {k: v for k, v in row.items() if k not in left} for row in other
    ]


def test_the_rows_are_those_of_the_stages_of_a_training(run, tmp_path):
    main([str(run), "--protocols", "linear_eval,adv_finetune", *FEW])
    found = rows(run)
    assert [(row["protocol"], row["name"]) for row in found] == [
        (protocol, name) for protocol in ("linear_eval", "adv_finetune") for name in ("clean", "pgd2")
    ]
    assert {(row["run"], row["model"], row["dataset"], row["bn_branch"]) for row in found} == {
        ("main", "trained", "digits", "clean")
    }
    assert checkpoint.latest(run / "checkpoints", "adv_finetune") is None  # the run is as it was
    trained = shutil.copytree(run, tmp_path / "trained", ignore=shutil.ignore_patterns("results.json", "finetuned"))
    resume(trained, "linear_eval", "adv_finetune", "evaluate")
    assert same_but_for_time(found, rows(trained))
    fitted = clead.load(run / "finetuned" / "main-adv_finetune-digits")
    theirs = clead.load(trained, stage="adv_finetune")
    assert all(torch.equal(value, fitted.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert fitted.evaluation_branch == "clean"


def test_what_is_trained_is_not_trained_again(run, monkeypatch):
    command = [str(run), "--protocols", "linear_eval", *FEW]
    main(command)
    trained = []
    fit = finetuning.fit_on
    monkeypatch.setattr(finetuning, "fit_on", lambda *args, **more: (trained.append(args[1]), fit(*args, **more)))
    before = rows(run)
    steps = (run / "finetuned" / "main-linear_eval-digits" / "metrics.jsonl").read_text()
    main(command)
    assert same_but_for_time(rows(run), before)
    assert (run / "finetuned" / "main-linear_eval-digits" / "metrics.jsonl").read_text() == steps
    resume(run, "linear_eval")
    trained.clear()
    main(command)
    assert trained == [] and same_but_for_time(rows(run), before)  # that of the run itself
    main([*command, "--seed", "5", "--out", str(run.parent / "out")])
    assert trained == ["linear_eval"] and {row["seed"] for row in rows(run.parent / "out")} == {5}


def test_another_setting_starts_anew_and_needs_a_table_of_its_own(run, tmp_path):
    command = [str(run), "--protocols", "full_finetune", *FEW, "--full-finetune.epochs"]
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(UserError, match="its table is of its own settings of full_finetune; others need --out"):
        main([*command, "2"])
    assert sorted(path.name for path in run.iterdir()) == before
    out = tmp_path / "out"
    for epochs in ("2", "3"):
        main([*command, epochs, "--out", str(out)])
        lines = (out / "finetuned" / "main-full_finetune-digits" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [*range(1, 3 * int(epochs) + 1)]
    for flag, message in (
        ("--full-finetune.epoch", "the nearest is --full-finetune.epochs"),
        ("--adv-finetune.epochs", "--adv-finetune.epochs needs --protocols adv_finetune, got full_finetune"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(run), "--protocols", "full_finetune", flag, "2"])
    with pytest.raises(UserError, match=r"full_finetune\.branch must be of clean, adv, got 'pgd'"):
        main([str(run), "--protocols", "full_finetune", "--full-finetune.branch", "pgd", "--out", str(out)])


def test_another_data_set(run, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "letters", seven_letters)
    main([str(run), "--protocols", "adv_linear_eval,metrics", "--adv-linear-eval.data", "letters", *FEW])
    assert {(row["protocol"], row["dataset"], row["samples"]) for row in rows(run)} == {
        ("adv_linear_eval", "letters", 30)
    }
    fitted = clead.load(run / "finetuned" / "main-adv_linear_eval-letters")
    before = clead.load(run, stage="pretrain").encoder.state_dict()
    assert len(fitted.heads["classifier"].weight) == 7
    assert all(torch.equal(value, before[key]) for key, value in fitted.encoder.state_dict().items())
    drops = json.loads((run / "measures.json").read_text())["measures"]
    by_name = {row["name"]: row["accuracy"] for row in rows(run)}
    found = next(measure for measure in drops if measure["name"] == "relative_drop")
    assert found["value"] == pytest.approx((by_name["clean"] - by_name["pgd2"]) / by_name["clean"])


def test_a_checkpoint_and_the_stages_a_run_begins_with(run):
    resume(run, "adv_finetune")
    path = checkpoint.latest(run / "checkpoints", "adv_finetune")
    main([str(path), "--protocols", "linear_eval", *FEW])
    main([str(run), "--protocols", "linear_eval", *FEW])
    folder = run / "evaluations" / path.name
    for found in (rows(folder), rows(run)):
        assert {row["protocol"] for row in found} == {"linear_eval"}
    tuned = clead.load(run, stage="adv_finetune").encoder.state_dict()
    own = clead.load(run / "finetuned" / "main-linear_eval-digits").encoder.state_dict()
    name = f"main_{path.name.rpartition('-')[0]}-{int(path.name.rpartition('-')[2])}-linear_eval-digits"
    theirs = clead.load(folder / "finetuned" / name).encoder.state_dict()
    assert torch.equal(theirs["conv1.weight"], tuned["conv1.weight"])
    assert not torch.equal(own["conv1.weight"], tuned["conv1.weight"])
    with pytest.raises(UserError, match="linear_eval begins with the pre-training; name the checkpoint"):
        main([str(run), "--protocols", "linear_eval", "--stage", "adv_finetune"])


def test_another_classifier_of_the_stage_of_the_own_one_is_told_from_it(run, tmp_path, capsys):
    resume(run, "linear_eval")
    out = tmp_path / "out"
    main([str(run), "--protocols", "attacks,linear_eval,full_finetune", *FEW, "--out", str(out)])
    assert {row["protocol"] for row in rows(out)} == {"linear_eval", "full_finetune"}
    said = capsys.readouterr().out
    assert "main clean: " in said and "main full_finetune clean: " in said
    assert "main linear_eval: no headline" in said and "main full_finetune: no headline" in said
    own = [row for row in rows(out) if row["protocol"] == "linear_eval"]
    main([str(run), "--protocols", "linear_eval", *FEW, "--linear-eval.epochs", "9", "--out", str(out)])
    assert [row["protocol"] for row in rows(out)[-2:]] == ["linear_eval_refitted"] * 2
    assert [row for row in rows(out) if row["protocol"] == "linear_eval"] == own
    path = checkpoint.latest(run / "checkpoints", "linear_eval")
    main([str(path), "--protocols", "attacks,linear_eval", *FEW, "--linear-eval.epochs", "9"])
    again = rows(run / "evaluations" / path.name)
    assert [row["protocol"] for row in again] == ["linear_eval"] * 2 + ["linear_eval_refitted"] * 2
    assert again[2]["accuracy"] == rows(out)[-2]["accuracy"] != again[0]["accuracy"]


def test_an_interrupted_fine_tuning_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    command = [str(run), "--protocols", "full_finetune", *FEW, "--full-finetune.epochs", "3", "--out"]
    main([*command, str(tmp_path / "whole")])
    step, seen = loop._step, []

    def interrupted(task, batch, *rest):
        seen.append(batch.step)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return step(task, batch, *rest)

    monkeypatch.setattr(loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*command, str(tmp_path / "parts")])
    main([*command, str(tmp_path / "parts")])
    assert seen == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8]  # three steps an epoch, and a checkpoint after each
    assert rows(tmp_path / "parts") != [] and same_but_for_time(rows(tmp_path / "parts"), rows(tmp_path / "whole"))


def test_an_encoder_from_outside(acl_file, tmp_path, monkeypatch):
    def coloured(*args, **options):
        splits = seven_letters()
        parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
        return replace(splits, **{name: replace(it, images=it.images.repeat(1, 3, 1, 1)) for name, it in parts.items()})

    monkeypatch.setitem(data.DATASETS, "letters", coloured)
    common = ["--format", "acl", "--data", "letters", "--out", str(tmp_path / "out"), *FEW]
    settings = ["--adv-finetune.epochs", "1", "--adv-finetune.attack.steps", "1"]
    main([str(acl_file), *common, "--protocols", "adv_finetune", *settings])
    found = rows(tmp_path / "out")
    assert {(row["run"], row["protocol"], row["dataset"], row["bn_branch"]) for row in found} == {
        ("acl", "adv_finetune", "letters", "adv")
    }
    assert [set(KEY) <= set(row) for row in found] == [True, True]
    module = "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(432, 7))\n"
    (tmp_path / "flat_letters.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="adv_finetune needs an encoder: a run, or a file in an official format"):
        main(["flat_letters:build", *common[2:], "--protocols", "adv_finetune"])


def test_another_classifier_of_an_earlier_stage_of_the_run_is_told_from_it_too(run, tmp_path):
    resume(run, "linear_eval", "adv_finetune")
    out = tmp_path / "out"
    main([str(run), "--protocols", "linear_eval", *FEW, "--out", str(out)])
    own = rows(out)
    main([str(run), "--protocols", "linear_eval", *FEW, "--linear-eval.epochs", "9", "--out", str(out)])
    assert rows(out)[: len(own)] == own
    assert {row["protocol"] for row in own} == {"linear_eval"}
    assert {row["protocol"] for row in rows(out)[len(own) :]} == {"linear_eval_refitted"}
