import json

import pytest
import torch

from clead.engine import checkpoint
from clead.errors import UserError


def save(folder, stage="pretrain", step=10):
    shared = torch.arange(6.0).view(2, 3)
    weights = {"a": shared, "b": shared, "c": torch.zeros(0)}  # tied tensors are stored twice
    meta = {"stage": stage, "step": step, "epoch": step // 5, "model": {}}
    return checkpoint.save(folder, meta, weights, {"optimizer": {"lr": 0.1, "buffer": torch.ones(2)}})


def test_round_trip(tmp_path):
    loaded = checkpoint.load(save(tmp_path))
    assert loaded.meta["epoch"] == 2
    assert torch.equal(loaded.weights["b"], torch.arange(6.0).view(2, 3))
    assert torch.equal(loaded.state["optimizer"]["buffer"], torch.ones(2))
    assert {path.name for path in loaded.path.iterdir()} == {"weights.safetensors", "state.pt", "meta.json"}


def test_latest_is_the_highest_complete_one_and_two_are_kept(tmp_path):
    for step in (90, 100, 110):
        save(tmp_path, step=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pretrain-00000100", "pretrain-00000110"]
    (tmp_path / "pretrain-00000120").mkdir()  # no meta.json: not complete
    (tmp_path / ".tmp-pretrain-00000130").mkdir()
    assert checkpoint.latest(tmp_path, "pretrain").name == "pretrain-00000110"
    assert checkpoint.latest(tmp_path, "linear_eval") is None
    save(tmp_path, stage="linear_eval", step=5)
    assert checkpoint.latest(tmp_path).name == "linear_eval-00000005"


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path)
    assert checkpoint.load(save(tmp_path)).meta["step"] == 10
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("part", ["weights.safetensors", "state.pt"])
def test_truncated_altered_and_missing_files_are_named(tmp_path, part):
    file = save(tmp_path) / part
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{part}: expected sha256 \w+…, found"):
        checkpoint.load(file.parent)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=part):
        checkpoint.load(file.parent)
    file.unlink()
    with pytest.raises(UserError, match=f"{part}: expected a file, found none"):
        checkpoint.load(file.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", {}), ("sha256", None), ("sha256", {"weights.safetensors": 1, "state.pt": 2}), ("step", 11)]
    + [("stage", "pretrai"), ("epoch", "2"), ("model", None)],
)
def test_a_damaged_meta_is_named(tmp_path, key, value):
    file = save(tmp_path) / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=r"meta\.json: expected"):
        checkpoint.load(file.parent)


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path)

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, step=20)
    assert [path.name for path in tmp_path.iterdir()] == ["pretrain-00000010"]
    checkpoint.load(tmp_path / "pretrain-00000010")
