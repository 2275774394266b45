"""Functions told of every logged step."""

import json
import sys
from types import ModuleType

import pytest

from clead import callbacks, train
from clead.callbacks import find_callback
from clead.cli import plans
from clead.errors import UserError

TINY = ["simclr", "--epochs", "1", "--batch-size", "100", "--train-samples", "300", "--stages", "pretrain"]


@pytest.fixture
def module(monkeypatch):
    """An importable module that collects what it is told."""
    found = ModuleType("told")
    found.lines = []
    found.collect = lambda folder, line: found.lines.append((folder, line))
    found.number = 3
    monkeypatch.setitem(sys.modules, "told", found)
    return found


def test_a_callback_gets_every_line(module, tmp_path):
    train.main([*TINY, "--out", str(tmp_path / "run"), "--callbacks", "told:collect"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line for _, line in module.lines] == lines and len(lines) == 3
    assert {folder for folder, _ in module.lines} == {tmp_path / "run"}
    assert "told" not in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize("name", ["told", "told:nothing", "told:number", "no_such_module:f", ":f", "told:"])
def test_a_wrong_name_is_one_sentence_before_anything_is_made(name, module, tmp_path):
    with pytest.raises(UserError, match=rf"--callbacks must be module:function, got '{name}'"):
        find_callback(name)
    with pytest.raises(UserError):
        train.main([*TINY, "--out", str(tmp_path / "run"), "--callbacks", name])
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_numbers_by_stage(monkeypatch, tmp_path):
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, *scalar):
            seen.append(scalar)

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    line = {"stage": "pretrain", "epoch": 1, "step": 7, "loss": 0.5, "metrics": {"a": 1.5}}
    for _ in range(2):
        callbacks.tensorboard(tmp_path, line)
    assert seen == [tmp_path / "tensorboard", *2 * [("pretrain/loss", 0.5, 7), ("pretrain/a", 1.5, 7)]]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="needs `pip install tensorboard`"):
        callbacks.tensorboard(tmp_path / "other", line)


def test_callbacks_come_from_the_command_line_only(tmp_path):
    (plan,) = plans([*TINY, "--callbacks", "a:b", "c:d"])
    assert plan.callbacks == ("a:b", "c:d") and not hasattr(plan.config, "callbacks")
