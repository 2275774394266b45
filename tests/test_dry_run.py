import re

import pytest

from clead import dry_run, train
from clead.dry_run import Estimate, _duration

TINY = ["--batch-size", "64", "--linear-eval.epochs", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(dry_run, "MEASURED", 3)


@pytest.mark.parametrize("method", ["simclr", "acl", "ifnd", "trades"])
def test_it_names_every_stage_and_its_steps_and_writes_nothing(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main([method, *TINY, "--epochs", "7", "--stages", "pretrain", "linear_eval", "evaluate", "--dry-run"])
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["pretrain"][1:3] == ["7", str(7 * (1197 // 64))]
    assert lines["linear_eval"][1:3] == ["4", str(4 * (1197 // 128))]
    assert lines["evaluate"][1:] == ["not", "estimated"]
    assert float(lines["pretrain"][3]) > 0
    assert "1,197 training images of 1x8x8" in out and re.search(r"digits_cnn with [\d,]+ parameters", out)
    assert list(tmp_path.iterdir()) == []


def test_adversarial_and_full_fine_tuning_are_measured_too(tmp_path, capsys):
    stages = ["pretrain", "adv_linear_eval", "full_finetune", "adv_finetune"]
    run = [*TINY, "--epochs", "0", "--attack.steps", "1", "--out", str(tmp_path / "run"), "--stages", *stages]
    train.main(["rocl", *run, "--dry-run", "--compare", "random"])
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["pretrain"][1:4] == ["0", "0", "0.0"]
    assert all(float(lines[stage][3]) > 0 for stage in stages[1:])
    assert "as much again" in out and not (tmp_path / "run").exists()


def test_time_is_steps_and_what_precedes_the_epochs():
    assert Estimate(epochs=10, steps=1000, step=0.02, epoch=3.0).seconds == pytest.approx(50.0)
    assert [_duration(x) for x in (0.4, 59.4, 90, 3600, 100_000)] == [
        "0 s",
        "59 s",
        "2 min",
        "1 h 00 min",
        "27 h 47 min",
    ]
