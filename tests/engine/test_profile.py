"""Where the steps go, on a clock of our own and in a run."""

import gzip
import json
import re

import pytest
import torch

from clead import train
from clead.augment import Augmentation
from clead.engine import checkpoint
from clead.engine import profile as module
from clead.engine.profile import Profile
from clead.errors import UserError
from clead.methods import Batch, Method
from clead.models import Model

SHORT = ["acl", "--epochs", "2", "--train-samples", "96", "--batch-size", "32", "--stages", "pretrain", "--compare"]
SHORT += ["--attack.steps", "1"]


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Work:
    def attack(self, clock):
        clock.now += 5.0


def test_every_second_counts_once(tmp_path, monkeypatch):
    clock, lines = Clock(), []
    monkeypatch.setattr(module, "time", clock)
    original, work = Work.__dict__["attack"], Work()
    profile = Profile(2, tmp_path / "profile", ((Work, "attack", "attack"),), lines.append)

    def batches():
        for step in range(5):
            clock.now += 0.25
            yield step, Batch(torch.zeros(8, 1, 2, 2), *[torch.zeros(8, dtype=torch.int64)] * 2, step, 0)

    def loss():
        clock.now += 1.0
        work.attack(clock)
        with profile.part("forward"):
            clock.now += 2.0

    def attack_that_encodes():
        with profile.part("attack"), profile.part("forward"):
            clock.now += 3.0

    with profile:
        for step, _ in profile.each(batches()):
            assert (Work.__dict__["attack"] is original) == (step in (0, 3, 4))
            with profile.part("backward"):
                profile.labelled("loss", loss)()
                clock.now += 4.0
            attack_that_encodes()
            with profile.part("optimizer"):
                clock.now += 0.5
            clock.now += 0.125
    found = {name: seconds for name, seconds in profile.seconds.items() if seconds}
    one = {"loading": 0.25, "attack": 5.0 + 3.0, "forward": 2.0, "loss": 1.0, "backward": 4.0, "optimizer": 0.5}
    assert found == {name: 2 * seconds for name, seconds in (one | {"other": 0.125}).items()}
    page = (tmp_path / "profile" / "summary.md").read_text()
    assert "Steps 2 to 3, 8 images each: 15875.0 ms a step, 0.5 images/s, on the CPU" in page
    assert "| attack | 8000.00 | 50.4% |" in page and len(lines) == 1


def test_a_run_is_the_same_with_a_profile(tmp_path, capsys):
    train.main([*SHORT, "--profile", "2", "--out", str(tmp_path / "run")])
    train.main([*SHORT, "--out", str(tmp_path / "plain")])
    assert capsys.readouterr().out.count("profile of 2 steps") == 1
    assert not (tmp_path / "plain" / "profile").exists()
    one, other = (checkpoint.load(checkpoint.latest(tmp_path / n / "checkpoints")).weights for n in ("run", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(not hasattr(f, "__wrapped__") for f in (Augmentation.__call__, Method.perturb, Model.features))

    page = (tmp_path / "run" / "profile" / "summary.md").read_text()
    rows = dict(re.findall(r"^\| ([\w ]+) \| ([\d.]+) \|", page, re.MULTILINE))
    assert {"augmentation", "attack", "forward", "loss", "backward", "optimizer"} <= set(rows)
    step = float(re.search(r"([\d.]+) ms a step", page)[1])
    assert sum(map(float, rows.values())) == pytest.approx(step, rel=0.01, abs=0.1)
    assert "| `aten::convolution_backward` |" in page and "Steps 2 to 3, 32 images each" in page
    trace = json.loads(gzip.decompress((tmp_path / "run" / "profile" / "trace.json.gz").read_bytes()))
    named = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert named.count("clead: attack") == 2 and named.count("clead: optimizer") == 2


def test_a_stage_shorter_than_the_profile_and_one_that_fails(tmp_path):
    def run(path, fail):
        with Profile(9, path, (), lambda line: None) as profile:
            for step, _ in profile.each(iter([(0, None), (1, None), (2, None)])):
                if fail and step == 2:
                    raise KeyboardInterrupt

    run(tmp_path / "short", fail=False)
    assert "Steps 2 to 3, 0 images each" in (tmp_path / "short" / "summary.md").read_text()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "failed", fail=True)
    assert not (tmp_path / "failed").exists()


def test_no_negative_number_of_steps(tmp_path):
    with pytest.raises(UserError, match="profile must be at least 0, got -1"):
        train.main([*SHORT, "--profile", "-1", "--out", str(tmp_path / "run")])
