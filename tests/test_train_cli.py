"""The command: what a newcomer sees, what bad input gets, and that resuming is exact."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import clead
from clead import train
from clead.cli import config_values, plans, read_config
from clead.data import DATASETS, cifar10
from clead.engine import checkpoint
from clead.engine.run import RunFolder
from clead.errors import run_command
from clead.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--epochs", "2", "--batch-size", "64", "--linear-eval.epochs", "2", "--evaluation.samples", "40"]
TINY += ["--evaluation.sweep-eps", "0.05", "--attack.steps", "1", "--checkpoint-every", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny but complete run of the main job."""
    out = tmp_path_factory.mktemp("runs") / "main"
    train.main(["clead", *TINY, "--out", str(out)])
    return out


def rows(run):
    return json.loads((run / "results.json").read_text())["results"]


def test_the_run_folder_holds_what_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"run.json", "config.json", "env.json", "metrics.jsonl", "checkpoints", "figures", "results.json"} <= names
    state = json.loads((finished / "run.json").read_text())
    assert state == {"schema": 1, "state": "done", "stages": ["pretrain", "linear_eval", "evaluate"]}
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if m["stage"] == "pretrain"] == list(range(1, 2 * (1197 // 64) + 1))
    assert all(abs(m["pgd"] + m["cw"] - m["loss"]) < 1e-6 for m in metrics if m["stage"] == "pretrain")
    assert {path.name for path in (finished / "figures").glob("*.png")} == {
        "loss_curves.png",
        "accuracy_against_eps.png",
        "image_grid.png",
    }


def test_the_table_has_three_models_and_every_attack(finished):
    seen = {(row["model"], row["name"], row["eps"]) for row in rows(finished)}
    for model in ("trained", "undefended", "random"):
        assert (model, "clean", None) in seen
        assert (model, "pgd20", 0.05) in seen
        for name in ("fgsm", "pgd20", "cw"):
            assert {(model, name, 0.1), (model, name, 0.15)} <= seen
    assert {row["run"] for row in rows(finished)} == {"main"}
    assert all(row["samples"] == 40 and row["low"] <= row["accuracy"] <= row["high"] for row in rows(finished))


def test_the_comparisons_are_what_they_say(finished):
    config = json.loads((finished / "comparisons" / "undefended" / "config.json").read_text())
    assert (config["method"], config["values"]["epochs"], config["values"]["batch_size"]) == ("ce", 2, 64)
    random = clead.load(finished / "comparisons" / "random")
    at_start = clead.load(finished / "comparisons" / "random", stage="pretrain")
    for key, value in at_start.state_dict().items():
        assert torch.equal(value, random.state_dict()[key])


def test_the_undefended_model_is_evaluated_with_the_branch_it_trained(tmp_path, capsys):
    branches = ["--encoder.bn.branches", "clean", "adv", "--encoder.bn.evaluation-branch", "adv"]
    few = ["--evaluation.attacks", "--evaluation.sweep-eps", "--compare", "undefended"]
    train.main(["clead", *TINY, *branches, *few, "--out", str(tmp_path / "run")])
    assert {row["model"]: row["bn_branch"] for row in rows(tmp_path / "run")} == {
        "trained": "adv",
        "undefended": "clean",
    }
    assert f"beside it, the undefended model: {tmp_path}/run/comparisons/undefended" in capsys.readouterr().out


def test_every_one_of_several_runs_is_announced(tmp_path, capsys):
    few = ["--epochs", "0", "--compare", "--evaluation.attacks", "fgsm", "--evaluation.samples", "20"]
    train.main(["ce", *few, "--seeds", "0,1", "--out", str(tmp_path / "run")])
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("run ")] == [
        f"run 1 of 2: {tmp_path}/run-s0",
        f"run 2 of 2: {tmp_path}/run-s1",
    ]


def test_what_was_not_asked_for_is_not_missed(tmp_path, capsys):
    train.main(["clead", "--epochs", "0", "--compare", "--stages", "pretrain", "--out", str(tmp_path / "run")])
    assert "expected" not in capsys.readouterr().out


def test_load_gives_the_model_in_three_lines(finished):
    model = clead.load(finished)
    features = model.features(torch.rand(2, 1, 8, 8), branch="clean")
    assert features.shape == (2, model.encoder.feature_dim) and not model.training


def test_a_loaded_model_is_called_like_any_classifier(finished):
    x = torch.rand(2, 1, 8, 8)
    model, encoder = clead.load(finished), clead.load(finished, stage="pretrain")
    assert torch.equal(model(x), model.logits(x, branch="clean")) and model(x).shape == (2, 10)
    assert torch.equal(encoder(x), encoder.features(x, branch="clean"))


def test_running_again_is_refused_and_resuming_a_finished_run_does_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "checkpoints").rglob("*")}
    assert status(["clead", *TINY, "--out", str(finished)]) == 2
    assert "pass --resume, --overwrite or another --out" in one_line(capsys)
    train.main(["clead", "--resume", "--out", str(finished)])
    assert {path: path.stat().st_mtime_ns for path in (finished / "checkpoints").rglob("*")} == before
    assert "ce, no defence" in capsys.readouterr().out


def test_resuming_with_another_evaluation_measures_what_changed(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "moved")
    changed = [
        "--compare",
        "--evaluation.samples",
        "30",
        "--evaluation.eps",
        "0.05",
        "0.1",
        "--evaluation.attacks",
        "pgd20",
    ]
    train.main(["clead", "--resume", "--out", str(out), *changed, "--evaluation.sweep-eps", "0.15"])
    seen = {(r["model"], r["name"], r["eps"]): (r["samples"], r["flags"]) for r in rows(out)}
    assert len(rows(out)) == len(rows(finished))
    assert seen["trained", "clean", None] == seen["trained", "pgd20", 0.05] == seen["trained", "pgd20", 0.1]
    assert seen["trained", "clean", None] == (30, ["subset"])
    assert seen["trained", "pgd20", 0.15] == (30, ["subset", "sweep"])
    assert seen["trained", "cw", 0.1] == (40, ["subset"])  # not asked for: left as it was
    assert {row["run"] for row in rows(out)} == {"moved"}
    _, _, config = read_config(out / "config.json")
    assert (config.evaluation.samples, config.epochs) == (30, 2)


def test_resuming_with_other_settings_is_refused(finished, tmp_path, capsys):
    assert status(["clead", "--resume", "--out", str(finished), "--attack.eps", "0.2"]) == 2
    assert "cannot resume with attack" in one_line(capsys)
    for start in (["clead", "--recipe", "clead_digits"], ["--config", str(other_epochs(tmp_path, finished))]):
        assert status([*start, "--resume", "--out", str(finished)]) == 2
        assert "cannot resume with" in one_line(capsys)
    train.main(["clead", "--recipe", "clead_digits", *TINY, "--resume", "--out", str(finished)])


def other_epochs(folder, run):
    saved = json.loads((run / "config.json").read_text())
    saved["values"]["epochs"] += 1
    (folder / "other.json").write_text(json.dumps(saved))
    return folder / "other.json"


def test_a_folder_in_the_way_is_found_before_the_first_of_several_runs(tmp_path, capsys):
    (tmp_path / "run-s1").mkdir()
    (tmp_path / "run-s1" / "thesis.tex").touch()
    assert status(["clead", *TINY, "--seeds", "0,1", "--out", str(tmp_path / "run")]) == 2
    assert "run-s1: expected an empty folder or a run folder" in one_line(capsys)
    assert not (tmp_path / "run-s0").exists()


@pytest.mark.parametrize("method", ["clead", "simclr", "ce", "pgd_at"])
def test_resuming_is_exact_to_the_last_bit(method, tmp_path, interrupted_at):
    flags = [flag for flag in TINY if method in ("clead", "pgd_at") or flag not in ("--attack.steps", "1")]
    if method not in ("clead", "pgd_at"):
        flags = ["--epochs", "2", "--batch-size", "64", "--checkpoint-every", "1", "--stages", "pretrain"]
    else:
        flags = [*flags, "--stages", "pretrain"]
    flags += ["--compare"] if method == "clead" else []
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.main([method, *flags, "--out", str(whole)])
    with interrupted_at(25):
        train.main([method, *flags, "--out", str(broken)])
    train.main([method, "--resume", "--out", str(broken)])
    a, b = (checkpoint.load(checkpoint.latest(run / "checkpoints")) for run in (whole, broken))
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1]


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
    ("argv", "expected"),
    [
        (["clead", "--attack.eps", "-0.1"], "attack.eps must be at least 0, got -0.1"),
        (["clead", "--attack.eps", "8"], "attack.eps must be at most 1, the range of a pixel, in linf (8/255 for 8"),
        (["clead", "--attack.eps", "8/0"], "expected a number such as 0.03 or 8/255, got '8/0'"),
        (["clead", "--attack.eps", "nan"], "expected a finite number, got 'nan'"),
        (["clead", "--temperature", "0"], "temperature must be above 0, got 0.0"),
        (["clead", "--epochs", "-1"], "epochs must be at least 0, got -1"),
        (["clead", "--epochs", "1.5"], "error: --epochs: expected an integer, got '1.5'"),
        (["clead", "--batch-size", "5000"], "at most the 1197 training samples, got 5000"),
        (["clead", "--epoch", "3"], "error: unknown option --epoch; the nearest is --epochs"),
        (["clead", "--attack.ep", "3"], "error: unknown option --attack.ep; the nearest is --attack.eps"),
        (["cleed"], "unknown method 'cleed'; the nearest is 'clead'"),
        ([], "expected a method as the first argument"),
        (["clead", "--data", "cifer10"], "the nearest is 'cifar10'"),
        (["clead", "--recipe", "clead_digit"], "unknown recipe 'clead_digit'; the nearest is 'clead_digits'"),
        (["clead", "--recipe", "ce_digits"], "is for the method 'ce', got 'clead'"),
        (["clead", "--encoder.name", "resnet19"], "the nearest is 'resnet18'"),
        (["clead", "--evaluation.attacks", "fgsm", "pdg20"], "unknown attack 'pdg20'"),
        (["clead", "--stages", "evaluate"], "needs a checkpoint of an earlier one, found none"),
        (
            ["pgd_at", "--encoder.bn.branches", "clean", "adv"],
            "encoder.bn.evaluation_branch must be adv, which pgd_at trains, got 'clean'",
        ),
        (["clead", "--evaluation.eps", "2"], "error: evaluation.eps must be in [0, 1], got 2.0"),
        (["clead", "--impl", "triton"], "--impl triton: "),
        (["clead", "--impl", "fast"], "--impl"),
        (["clead", "--data", "cifar10", "--data-dir", "/nonexistent"], "/nonexistent"),
        (["clead", "--seeds", "0,x"], "expected integers such as 0,1,2, got '0,x'"),
        (["clead", "--sweep", "attack.eps"], "--sweep must be field=value,value"),
        (["clead", "--sweep", "out=a,b"], "--sweep must name a setting other than out"),
        (["clead", "--sweep", "data=digits,cifar10"], "--sweep must name a setting other than data"),
        (["clead", "--sweep", "attack.eps=0.1,0.1"], "got runs/clead-digits-attack.eps=0.1-s0 twice"),
        (["clead", "--seeds", "1,1"], "got runs/clead-digits-s1 twice"),
        (["clead", "--seeds", "0,1", "--out", "."], "--out must name a folder to which -s0 can be added, got ."),
        (["clead", "--attack.eps", "1" + 400 * "0" + "/1"], "--attack.eps: expected a number such as"),
        (["clead", "--threads", "100000"], "threads must be in [0, 1024], got 100000"),
        (["clead", "--config", "/nonexistent.json"], "/nonexistent.json: expected a file, found none"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(argv, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status(argv) == 2
    assert expected in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cifar_dir(tmp_path, monkeypatch):
    """CIFAR-10 in its binary form, 1,001 images per batch instead of ten thousand."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", 1001)
    monkeypatch.setattr(cifar10, "SHA256", {})
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in cifar10.BATCHES:
        (folder / f"{name}.bin").write_bytes((bytes([3]) + bytes(3072)) * 1001)
    return folder


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda file: file.unlink(), "data_batch_2.bin: expected a file, found none"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:-1]),
            "data_batch_2.bin: expected 3,076,073 bytes, found 3,076,072",
        ),
        (lambda file: file.write_bytes(bytes([10]) + file.read_bytes()[1:]), "data_batch_2.bin: expected labels"),
    ],
    ids=["missing", "truncated", "label 10"],
)
def test_a_spoilt_data_folder_gets_one_sentence(spoil, expected, cifar_dir, tmp_path, capsys):
    spoil(cifar_dir / "data_batch_2.bin")
    out = tmp_path / "run"
    assert status(["clead", "--data", "cifar10", "--data-dir", str(tmp_path), "--out", str(out)]) == 2
    assert expected in one_line(capsys)
    assert not out.exists()


def test_a_run_folder_in_use_gets_one_sentence(finished, capsys):
    with RunFolder.create(finished, resume=True, overwrite=False):
        assert status(["clead", "--resume", "--out", str(finished)]) == 2
    assert "the run folder is in use by another process" in one_line(capsys)


def test_a_config_with_an_unknown_or_impossible_value_names_the_file(tmp_path, capsys):
    file = tmp_path / "config.json"
    for values, expected in [
        ({"epochz": 3}, "unknown setting 'epochz'; the nearest is 'epochs'"),
        ({"attack": {"eps": -1}}, "attack.eps must be at least 0"),
        ({"attack": 3}, "attack must be an object, got 3"),
        ({"epochs": "many"}, "--epochs"),
        ({"download": "--help"}, "download must be true or false, got '--help'"),
        ({"attack": {"random_start": 1}}, "attack.random_start must be true or false, got 1"),
        ({"evaluation": {"attacks": True}}, "evaluation.attacks must be a list"),
        ({"evaluation": {"attacks": ["fgsm", "--help"]}}, "evaluation.attacks must be a list"),
        ({"evaluation": {"eps": ["--epochs=3"]}}, "evaluation.eps must be a list"),
        ({"seed": [1]}, "seed must be a single value, got [1]"),
    ]:
        file.write_text(json.dumps({"schema": 1, "method": "clead", "recipe": "", "values": values}))
        assert status(["--config", str(file)]) == 2
        line = one_line(capsys)
        assert str(file) in line and expected in line


# the command line


def test_fractions_seeds_sweeps_and_configs(tmp_path, finished):
    (plan,) = plans(["clead", "--data", "cifar10", "--attack.eps", "8/255"])
    assert (plan.recipe, plan.config.attack.eps, str(plan.out)) == ("clead_cifar10", 8 / 255, "runs/clead-cifar10-s0")
    assert [(p.config.seed, str(p.out)) for p in plans(["ce", "--seeds", "0,2"])] == [
        (0, "runs/ce-digits-s0"),
        (2, "runs/ce-digits-s2"),
    ]
    swept = plans(["clead", "--sweep", "attack.eps=4/255,8/255", "--seeds", "0,1"])
    assert [p.config.attack.eps for p in swept] == [4 / 255, 4 / 255, 8 / 255, 8 / 255]
    assert len({p.out for p in swept}) == 4
    (again,) = plans(["--config", str(finished / "config.json"), "--out", str(tmp_path / "x")])
    assert again.config == plans(["clead", *TINY])[0].config


def test_every_setting_survives_its_config_file(tmp_path):
    flags = ["--data-dir=-odd name", "--download", "--attack.no-random-start", "--stages", "pretrain", "--compare"]
    flags += ["--evaluation.attacks", "--evaluation.samples", "7", "--encoder.bn.branches", "clean", "adv"]
    (plan,) = plans(["clead", *flags, "--encoder.bn.evaluation-branch", "adv", "--attack.eps", "8/255"])
    file = tmp_path / "config.json"
    saved = {"schema": 1, "method": "clead", "recipe": plan.recipe, "values": config_values(plan.config)}
    file.write_text(json.dumps(saved))
    assert read_config(file) == ("clead", "clead_digits", plan.config)


@pytest.mark.parametrize("flag", ["--list", "--help", "-h"])
def test_list_and_help_name_every_method(flag, capsys):
    train.main([flag])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[: len(METHODS)]] == [*METHODS]  # one line each
    assert flag == "--list" or "METHOD --help" in out


def command(*argv, **options):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "clead.train", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path):
    out = tmp_path / "run"
    process = command("simclr", "--epochs", "400", "--checkpoint-every", "1", "--stages", "pretrain", "--out", str(out))
    deadline = time.monotonic() + 300
    while checkpoint.latest(out / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted; the same command with --resume continues"
    assert json.loads((out / "run.json").read_text())["state"] == "failed"
    assert [path.name for path in out.rglob(".tmp-*")] == []
    checkpoint.load(checkpoint.latest(out / "checkpoints"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path):
    def small_files():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # every longer file fails like on a full disk

    out = tmp_path / "run"
    process = command("ce", "--epochs", "1", "--stages", "pretrain", "--out", str(out), preexec_fn=small_files)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = stderr.strip().splitlines()
    assert line.startswith("error: ") and "File too large" in line
    assert list((out / "checkpoints").iterdir()) == []


def test_help_begins_with_the_methods_own_settings_and_flags_have_one_form(capsys):
    with pytest.raises(SystemExit):
        train.main(["rocl", "--help"])
    shown = capsys.readouterr().out
    assert "Its own settings: projector, temperature, attack, regularization;" in shown
    assert "--resume" in shown and "--no-resume" not in shown and "--speed.no-fold" in shown
    (usual,) = (line for line in shown.splitlines() if "To begin with: " in line)
    (groups,) = (line for line in shown.splitlines() if "below the single flags: " in line)
    assert shown.index(usual) < shown.index("Its own settings") < shown.index(groups) < shown.index("Kim et al.")
    named = usual.partition(": ")[2].rstrip(". ").split(", ")
    assert len(named) == 13 and all(re.search(rf"^\W*{flag}(?![\w-])", shown, re.MULTILINE) for flag in named)
    titles = set(re.findall(r"^\W*([\w-]+) options\W*$", shown, re.MULTILINE))
    assert "attack" in titles and titles == set(groups.partition("flags: ")[2].rstrip(". ").split(", "))


def test_help_names_the_data_sets(capsys):
    with pytest.raises(SystemExit):
        train.main(["ce", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATASETS)


def test_a_refused_resume_leaves_a_finished_run_finished(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*.json")}
    assert status(["clead", "--resume", "--attack.eps", "0.2", "--out", str(finished)]) == 2
    assert f"{finished}: cannot resume with attack.eps 0.2, the run has 0.15" in one_line(capsys)
    assert {path: path.read_bytes() for path in before} == before
