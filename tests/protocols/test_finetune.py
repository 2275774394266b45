import json
import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from clead.config import AdvFinetuneConfig, AttackConfig, FinetuneConfig, LinearEvalConfig, OptimizerConfig, SpeedConfig
from clead.data import load_digits
from clead.engine.loop import fit
from clead.engine.progress import Progress
from clead.engine.run import RunFolder
from clead.methods.base import Batch
from clead.methods.inner import Inner
from clead.models import BatchNormConfig, LinearHead, Model, Projector, build_encoder, initialise
from clead.protocols.finetune import Classification, fine_tuning
from clead.rng import Rng, permutation

ATTACK = AttackConfig(eps=0.15, step_size=0.05, steps=3)
CONFIGS = {
    "linear_eval": LinearEvalConfig(epochs=2, batch_size=50),
    "adv_linear_eval": AdvFinetuneConfig(epochs=2, batch_size=50, attack=ATTACK, loss="ce"),
    "full_finetune": FinetuneConfig(epochs=2, batch_size=50),
    "adv_finetune": AdvFinetuneConfig(epochs=2, batch_size=50, attack=ATTACK),
}


@pytest.fixture(scope="module")
def splits():
    digits = load_digits()
    return replace(digits, train=digits.train.select(torch.arange(200)))


def new_model(*heads, branches=("clean", "adv")):
    bn = BatchNormConfig(branches=branches)
    encoder = build_encoder("digits_cnn", in_channels=1, mean=(0.3,), std=(0.4,), bn=bn)
    new = {"projector": Projector(encoder.feature_dim, 8, 8), "classifier": LinearHead(encoder.feature_dim, 10)}
    model = Model(encoder, {name: new[name] for name in heads})
    initialise(model, seed=1)
    return model


def train(stage, model, splits, path, **changes):
    with RunFolder.create(path, resume=True, overwrite=False) as folder:
        settings = replace(CONFIGS[stage], **changes)
        fixed = {"branch": "clean", "seed": 3, "impl": "auto", "checkpoint_every": 1, "meta": {}}
        fit(fine_tuning(model, stage, settings, splits, **fixed), folder, Progress(Console(quiet=True)))
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_stage_changes_what_it_trains_and_nothing_else(stage, splits, tmp_path):
    model = new_model("projector")
    before = deepcopy(model.state_dict())
    losses = train(stage, model, splits, tmp_path / "run")
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if stage in ("linear_eval", "adv_linear_eval"):
        assert changed == set()
    else:
        kept = ("normalize.", ".branch.adv.", "heads.projector.")
        assert changed == {key for key in before if not any(part in key for part in kept)}
    assert bool(after["heads.classifier.weight"].any())
    assert not model.training and all(it.requires_grad for it in model.parameters())
    if stage != "linear_eval":
        assert losses[0] == pytest.approx(math.log(10))  # a classifier of zeros


def test_linear_evaluation_equals_a_loop_on_the_features(splits, tmp_path):
    model = new_model()
    train("linear_eval", model, splits, tmp_path / "run", optimizer=OptimizerConfig(lr=0.1, schedule="constant"))
    rival = torch.nn.Linear(model.encoder.feature_dim, 10)
    fresh = LinearHead(model.encoder.feature_dim, 10)
    initialise(fresh, 3)
    rival.load_state_dict(fresh.state_dict())
    with torch.no_grad():
        features = model.features(splits.train.batch(torch.arange(200)), branch="clean")
    optimizer = torch.optim.SGD(rival.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for samples in permutation(3, 200, epoch).split(50):
            optimizer.zero_grad()
            F.cross_entropy(rival(features[samples]), splits.train.labels[samples]).backward()
            optimizer.step()
    torch.testing.assert_close(model.heads["classifier"].weight, rival.weight)


def classification(config, with_encoder=True):
    model = new_model("classifier", branches=("clean",)).double()
    model.train(with_encoder)
    return Classification(model, config, "clean", with_encoder, "auto")


def batch(splits):
    samples = torch.arange(20)
    x = splits.train.batch(samples).double()
    return Batch(x, splits.train.labels[samples], samples, step=0, seed=5)


def row_losses(loss, task, x, x_adv, labels):
    """By loops over the probabilities, batch norm in eval mode."""
    mode = task.model.training
    task.model.eval()
    with torch.no_grad():
        p, q = (task.model.logits(images, branch="clean").softmax(1).tolist() for images in (x, x_adv))
    task.model.train(mode)
    if loss == "ce":
        return [-math.log(q[i][y]) for i, y in enumerate(labels.tolist())]
    return [sum(a * math.log(a / b) for a, b in zip(p[i], q[i], strict=True)) for i in range(len(p))]


@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_attacks_beat_ten_random_perturbations_and_stay_in_the_ball(loss, splits):
    task, b = classification(AdvFinetuneConfig(loss=loss, attack=ATTACK)), batch(splits)
    before = deepcopy(task.model.state_dict())
    x_adv = task.attacked(b.images, b.labels, task.config, b.rng("attack"))
    assert float((x_adv - b.images).abs().max()) <= 0.15 + 1e-12 and 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    attacked = sum(row_losses(loss, task, b.images, x_adv, b.labels))
    generator = torch.Generator().manual_seed(0)
    for size in [0.0] + [0.15] * 10:
        noise = size * torch.randn(b.images.shape, generator=generator).double().sign()
        assert attacked > sum(row_losses(loss, task, b.images, (b.images + noise).clamp(0, 1), b.labels))
    assert all(torch.equal(before[key], value) for key, value in task.model.state_dict().items())
    assert task.model.training and all(it.grad is None and it.requires_grad for it in task.model.parameters())


@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_the_loss_of_attacked_images_equals_loops(loss, splits):
    # A frozen encoder is in eval mode, so the probabilities can be had outside of the step.
    task, b = classification(AdvFinetuneConfig(loss=loss, beta=6.0, attack=ATTACK), with_encoder=False), batch(splits)
    terms = task.loss(b)
    x_adv = task.attacked(b.images, b.labels, task.config, b.rng("attack"))
    rows = row_losses(loss, task, b.images, x_adv, b.labels)
    if loss == "ce":
        assert terms["ce_adv"].item() == pytest.approx(sum(rows) / 20, rel=1e-10)
    else:
        clean = row_losses("ce", task, b.images, b.images, b.labels)
        assert terms["ce"].item() == pytest.approx(sum(clean) / 20, rel=1e-10)
        assert terms["kl"].item() == pytest.approx(6 * sum(rows) / 20, rel=1e-10)
    sum(terms.values()).backward()
    assert all(it.grad is None for it in task.model.encoder.parameters())
    assert all(it.grad is not None for it in task.model.heads["classifier"].parameters())


def test_augmentation_is_that_of_the_stage(splits):
    shifted, plain = (classification(FinetuneConfig(augment=name), False) for name in ("digits", "none"))
    b = batch(splits)
    assert shifted.loss(b)["ce"].item() != plain.loss(b)["ce"].item()


def test_epochs_are_compared_under_the_attack_of_training(splits, tmp_path):
    model, val = new_model(), splits.val
    train("full_finetune", model, splits, tmp_path / "run", epochs=5)
    task = Classification(model, AdvFinetuneConfig(loss="ce", attack=ATTACK), "clean", False, "auto")
    samples = torch.arange(100)
    x_adv = task.attacked(val.batch(samples), val.labels, task.config, Rng.create(3, "eval_attack", samples))
    with torch.no_grad():
        attacked, clean = (
            (model.logits(x, branch="clean").argmax(1) == val.labels).sum().item() / 100
            for x in (x_adv, val.batch(samples))
        )
    assert task.accuracy(val, seed=3) == task.accuracy(val, seed=3, batch_size=30) == attacked
    assert Classification(model, FinetuneConfig(), "clean", False, "auto").accuracy(val, seed=3) == clean
    assert clean > attacked + 0.1


@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_folding_batch_norm_changes_no_perturbation(loss, splits):
    task, b = classification(AdvFinetuneConfig(loss=loss, attack=ATTACK)), batch(splits)
    plain = replace(task, inner=Inner(SpeedConfig(fold=False)))
    with torch.no_grad():  # statistics as after some training, which the copy must follow
        for name, value in task.model.state_dict().items():
            if "running" in name:
                value.mul_(1.5).add_(0.1)
    fast, slow = (it.attacked(b.images, b.labels, it.config, b.rng("attack")) for it in (task, plain))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    assert not torch.equal(fast, b.images)
