"""What does not fit a method gets one sentence, before anything is written; what is there stays as it was."""

from dataclasses import replace

import pytest
import torch

from clead import data, train
from clead.data import load_digits
from clead.errors import UserError
from clead.loading import InputSpec, build_model
from clead.methods import METHODS
from clead.protocols.few_labels import few_labels
from clead.recipes import RECIPES


@pytest.fixture
def unlabelled(monkeypatch):
    """Digits without labels, under the name ``unlabelled``."""

    def load(data_dir=None, *, download=False, image_size=None):
        splits = load_digits()
        train_split = replace(splits.train, labels=torch.full_like(splits.train.labels, -1))
        return replace(splits, train=train_split)

    monkeypatch.setitem(data.DATASETS, "unlabelled", load)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "simclr"
    train.main(["simclr", "--epochs", "0", "--stages", "pretrain", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("simclr --batch-size 1", "batch_size must be at least 2, got 1"),
        ("simclr --full-finetune.batch-size 1", "full_finetune.batch_size must be at least 2, got 1"),
        ("simclr --train-samples 100", "batch_size must be at most the 100 training samples, got 128"),
        ("ifnd --train-samples 99 --batch-size 50", "these settings need at least 100 training images, got 99"),
        ("simclr --augment simclr", "augmentation 'simclr' changes colours: expected images with 3 channels, got 1"),
        ("simclr --recipe simclr_cifar10 --data digits", "changes colours: expected images with 3 channels, got 1"),
        ("advcl --adv-augment simclr", "augmentation 'simclr' changes colours: expected images with 3 channels, got 1"),
        ("clae --channel-scale 0.5 0.5 0.5", "channel_scale must hold 1 value, got (0.5, 0.5, 0.5)"),
        (
            "sup_con --recipe sup_con_digits --data unlabelled",
            "data must have a label for every training image with this method, got 'unlabelled'",
        ),
        (
            "acl --recipe acl_digits --data unlabelled",
            "linear_eval needs labels: expected one for every training image of",
        ),
    ],
)
def test_it_is_refused_in_one_sentence_before_anything_is_written(command, expected, unlabelled, tmp_path):
    with pytest.raises(UserError) as refused:
        train.main([*command.split(), "--out", str(tmp_path / "run")])
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("acl", "expected a run of 'acl' to resume, found one of 'simclr'"),
        (
            "simclr --encoder.bn.branches clean adv",
            "cannot resume with encoder.bn.branches ['clean', 'adv'], the run",
        ),
        ("simclr --projector.dim 32", "cannot resume with projector.dim 32, the run has 64"),
    ],
)
def test_a_run_of_another_method_or_architecture_is_not_resumed(command, expected, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as refused:
        train.main([*command.split(), "--resume", "--out", str(run)])
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in before} == before


def test_a_class_with_one_member_cannot_give_two_labels():
    splits = load_digits()
    model = build_model(METHODS["simclr"](RECIPES["simclr_digits"].config), InputSpec.of(splits))
    fours = (splits.train.labels == 4).nonzero()[:, 0]
    kept = torch.tensor(sorted({*range(len(splits.train))} - {*fours[1:].tolist()}))
    few = replace(splits, train=splits.train.select(kept))
    with pytest.raises(UserError, match="expected 2 images or more of every class, found 1 of 4"):
        few_labels(model, few, per_class=2, draws=1, branch="clean", seed=0)
