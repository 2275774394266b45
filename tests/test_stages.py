"""The stages after pre-training through the command: transfer, resuming, what is measured, bad input."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import clead
from clead import data, train
from clead.cli import Plan, plans, read_config
from clead.config import (
    STAGES,
    AdvFinetuneConfig,
    AttackConfig,
    EncoderConfig,
    EvaluationConfig,
    FinetuneConfig,
    KNNConfig,
    LinearEvalConfig,
    LogisticRegressionConfig,
)
from clead.data import Dataset, load_digits
from clead.engine import checkpoint
from clead.engine.progress import Progress
from clead.errors import UserError
from clead.evaluate import stage
from clead.evaluate.command import main as evaluate
from clead.models import BatchNormConfig
from clead.recipes import RECIPES

FEW = EvaluationConfig(attacks=("pgd2",), eps=(0.1,), samples=30)
ATTACK = AttackConfig(eps=0.15, step_size=0.15, steps=1)
SHORT = AdvFinetuneConfig(epochs=2, batch_size=100, attack=ATTACK)
BRANCHES = EncoderConfig("digits_cnn", BatchNormConfig(branches=("clean", "adv")))


def start(method, out, **changes):
    recipe = RECIPES[f"{method}_digits"]
    config = replace(recipe.config, epochs=1, train_samples=300, **changes)
    train.run(Plan(method, recipe.name, config, out, False, False), Progress(Console(quiet=True)))


def resume(run, *stages, **changes):
    method, recipe, config = read_config(run / "config.json")
    plan = Plan(method, recipe, replace(config, stages=stages or config.stages, **changes), run, True, False)
    train.run(plan, Progress(Console(quiet=True)))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pre-trained encoder with two branches and nothing else."""
    out = tmp_path_factory.mktemp("runs") / "simclr"
    start("simclr", out, encoder=BRANCHES, evaluation=FEW, stages=("pretrain",))
    return out


@pytest.fixture
def run(pretrained, tmp_path):
    """A copy of it to go on with."""
    return shutil.copytree(pretrained, tmp_path / "run")


def rows(run):
    return json.loads((run / "results.json").read_text())["results"]


def seven_letters(data_dir=None, *, download=False, image_size=None):
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
    probes = {
        "knn": KNNConfig(on=("features", "embeddings")),
        "logistic_regression": LogisticRegressionConfig(on=("embeddings",), epochs=1),
    }
    classifiers = {"linear_eval": LinearEvalConfig(epochs=1), "adv_finetune": replace(SHORT, data="letters")}
    resume(run, "linear_eval", "adv_finetune", "evaluate", **classifiers, **probes)
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
    resume(run, "evaluate")  # nothing is measured twice, but for the neighbours
    again = {row["name"] + row["protocol"]: row["seconds"] for row in rows(run)}
    assert {key for key in again if again[key] != measured[key]} <= {"cleanknn_features", "cleanknn_embeddings"}


def test_a_transferred_classifier_is_evaluated_on_its_own_data(run, letters, tmp_path):
    resume(run, "adv_finetune", adv_finetune=replace(SHORT, epochs=1, data="letters", data_dir=tmp_path / "elsewhere"))
    evaluate([str(run), "--attacks", "fgsm", "--eps", "0.1", "--samples", "20", "--out", str(tmp_path / "out")])
    seen = {(row["protocol"], row["dataset"], row["name"], row["samples"]) for row in rows(tmp_path / "out")}
    assert seen == {("adv_finetune", "letters", "clean", 20), ("adv_finetune", "letters", "fgsm", 20)}


@pytest.mark.parametrize("stage", ["adv_linear_eval", "full_finetune", "adv_finetune"])
def test_resuming_a_stage_is_exact_to_the_last_bit(stage, run, tmp_path, interrupted_at):
    kind = FinetuneConfig(batch_size=100) if stage == "full_finetune" else SHORT
    settings = replace(kind, epochs=3, augment="digits", select="best_val", val_fraction=0.2)
    broken = shutil.copytree(run, tmp_path / "broken")
    resume(run, stage, checkpoint_every=1, **{stage: settings})
    with interrupted_at(5):
        resume(broken, stage, checkpoint_every=1, **{stage: settings})
    resume(broken, stage)
    a, b = (checkpoint.load(checkpoint.latest(path / "checkpoints", stage)) for path in (run, broken))
    assert a.weights.keys() == b.weights.keys() and a.meta["selected"] == b.meta["selected"]
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    metrics = [(path / "metrics.jsonl").read_text().splitlines() for path in (run, broken)]
    assert [json.loads(line)["loss"] for line in metrics[0]] == [json.loads(line)["loss"] for line in metrics[1]]


def test_a_classifier_not_yet_begun_may_be_asked_for_otherwise(run):
    resume(run, "full_finetune", full_finetune=FinetuneConfig(epochs=1), adv_finetune=replace(SHORT, beta=3.0))
    _, _, config = read_config(run / "config.json")
    assert (config.full_finetune.epochs, config.adv_finetune.beta) == (1, 3.0)
    with pytest.raises(UserError, match="cannot resume with full_finetune"):
        resume(run, full_finetune=FinetuneConfig(epochs=2))


def test_without_any_classifier_there_is_nothing_to_attack(run):
    with pytest.raises(UserError, match="evaluate needs a classifier; run the stage linear_eval first"):
        resume(run, "evaluate")
    resume(run, "evaluate", knn=KNNConfig(on=("features",)))
    assert [row["protocol"] for row in rows(run)] == ["knn_features"]


def test_a_part_of_images_in_the_order_of_their_classes_has_all_of_them(run, monkeypatch):
    splits, seen, probed = load_digits(), [], stage.knn
    by_class = splits.test.select(splits.test.labels.argsort(stable=True))
    monkeypatch.setitem(data.DATASETS, "digits", lambda *args, **options: replace(splits, test=by_class))
    monkeypatch.setattr(stage, "knn", lambda *args, **options: (seen.append(args[2]), probed(*args, **options))[1])
    resume(run, "evaluate", knn=KNNConfig(on=("features",)))
    assert len(seen[0]) == 30 and set(seen[0].labels.tolist()) == set(range(10))


def test_the_branch_of_a_stage_is_the_one_evaluated(tmp_path):
    out = tmp_path / "run"
    bn = BatchNormConfig(branches=("clean", "adv"), evaluation_branch="adv")
    start(
        "clead",
        out,
        encoder=EncoderConfig("digits_cnn", bn),
        attack=ATTACK,
        linear_eval=LinearEvalConfig(epochs=1, branch="clean"),
        full_finetune=FinetuneConfig(epochs=1),
        evaluation=FEW,
        compare=(),
        stages=("pretrain", "linear_eval", "full_finetune", "evaluate"),
    )
    assert {row["protocol"]: row["bn_branch"] for row in rows(out)} == {"linear_eval": "clean", "full_finetune": "adv"}
    assert clead.load(out, stage="linear_eval").evaluation_branch == "clean"
    assert clead.load(out, stage="full_finetune").evaluation_branch == "adv"


@pytest.mark.gpu
def test_every_stage_on_a_gpu(tmp_path, letters):
    out = tmp_path / "run"
    start(
        "simclr",
        out,
        device="cuda",
        linear_eval=LinearEvalConfig(epochs=1),
        adv_linear_eval=replace(SHORT, loss="ce"),
        full_finetune=FinetuneConfig(epochs=1, augment="digits", select="best_val"),
        adv_finetune=replace(SHORT, data="letters", select="best_val", val_fraction=0.2),
        knn=KNNConfig(on=("features", "embeddings")),
        logistic_regression=LogisticRegressionConfig(on=("features",), epochs=1),
        evaluation=FEW,
        stages=STAGES,
    )
    assert len(rows(out)) == 3 + 4 * 2


@pytest.mark.parametrize("probe", ["features", "embeddings"])
def test_a_network_that_classifies_itself_has_no_embeddings(probe, tmp_path):
    config = {"knn": KNNConfig(on=(probe,)), "evaluation": replace(FEW, attacks=())}
    if probe == "embeddings":
        with pytest.raises(UserError, match=r"knn\.on must be features, as ce has no projector"):
            start("ce", tmp_path / "run", **config)
        assert not (tmp_path / "run").exists()
    else:
        start("ce", tmp_path / "run", **config)
        assert [row["protocol"] for row in rows(tmp_path / "run")] == ["knn_features", "end_to_end"]


# bad input


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 301}, r"adv_finetune\.batch_size must be at most the 300 training samples, got 301"),
        ({"data": "cifer"}, "unknown data set 'cifer'; the nearest is"),
        ({"data": "rgb"}, r"adv_finetune\.data must have images with 1 channels like digits, got 3"),
        ({"data": "unlabelled"}, "adv_finetune needs labels: expected one for every training image of letters/train"),
        ({"data": "letters", "select": "best_val"}, r"adv_finetune\.val_fraction must hold out an image or more"),
        ({"val_fraction": 1.0}, r"adv_finetune\.val_fraction must be in \[0, 1\), got 1\.0"),
        ({"epochs": -1}, r"adv_finetune\.epochs must be at least 0, got -1"),
        ({"beta": -1.0}, r"adv_finetune\.beta must be at least 0, got -1\.0"),
        ({"branch": "adv"}, r"adv_finetune\.branch must be clean, which simclr trains, got 'adv'"),
        ({"augment": "simclr"}, "augmentation 'simclr' changes colours"),
        ({"augment": "cropp"}, "unknown augmentation 'cropp'"),
    ],
)
def test_settings_that_do_not_fit_leave_the_run_as_it_was(changes, expected, run, letters, monkeypatch):
    def changed(train_split):
        return lambda data_dir=None, *, download=False, image_size=None: replace(seven_letters(), train=train_split)

    train_split = seven_letters().train
    monkeypatch.setitem(
        data.DATASETS, "rgb", changed(replace(train_split, images=train_split.images.repeat(1, 3, 1, 1)))
    )
    unlabelled = replace(train_split, labels=torch.full_like(train_split.labels, -1))
    monkeypatch.setitem(data.DATASETS, "unlabelled", changed(unlabelled))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match=expected):
        resume(run, "adv_finetune", "evaluate", adv_finetune=replace(SHORT, **changes))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--knn.k", "0"], r"^knn\.k must be above 0, got 0"),
        (["--adv-finetune.attack.eps", "8/0"], r"^--adv-finetune\.attack\.eps: expected a number"),
        (["--adv-finetune.epochs", "-1"], r"^adv_finetune\.epochs must be at least 0, got -1"),
        (["--adv-finetune.optimizer.gamma", "0"], r"^adv-finetune\.optimizer: gamma must be above 0"),
    ],
)
def test_a_bad_flag_is_one_sentence(flags, expected):
    with pytest.raises(UserError, match=expected):
        plans(["simclr", *flags])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method", "clead", "expected a checkpoint of the method 'simclr', found 'clead'"),
        ("encoder", "resnet18", "expected a checkpoint of the encoder 'digits_cnn', found 'resnet18'"),
        ("batch_norm", {"evaluation_branch": "pgd"}, "expected the evaluation_branch clean or adv, found 'pgd'"),
        ("batch_norm", 3, "expected the evaluation_branch clean or adv, found None"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(key, value, expected, run):
    file = checkpoint.latest(run / "checkpoints") / "meta.json"
    meta = json.loads(file.read_text())
    meta["model"][key] = value
    file.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=expected):
        resume(run, "linear_eval")
    assert checkpoint.latest(run / "checkpoints", "linear_eval") is None


def test_default_settings_are_the_official_codes():
    # ACL: TRADES with beta 6 and ten steps of 2/255, 25 epochs at 0.1, a tenth of it at 15 and 20.
    config = FinetuneConfig()
    assert (config.epochs, config.batch_size, config.zero_init) == (25, 128, True)
    assert [share * config.epochs for share in config.optimizer.milestones] == [15.0, 20.0]
