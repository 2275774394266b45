import json
import math
from dataclasses import replace

import pytest
import torch

from clead.attacks import frozen
from clead.config import EncoderConfig
from clead.errors import UserError
from clead.methods.advcl import AdvCL
from clead.methods.clusters import kmeans
from clead.recipes import RECIPES
from clead.rng import Rng
from clead.train import main

# Of a split of eight, by number of clusters.
PSEUDO_LABELS = {2: [0, 1, 0, 1, 1, 0, 0, 0], 3: [2, 1, 0, 1, 2, 0, 1, 1]}


@pytest.fixture
def advcl(small):
    def build(**changes):
        method, model, batch = small("advcl", clusters=tuple(PSEUDO_LABELS), **changes)
        method.load_state_dict({"pseudo_labels": torch.tensor(list(PSEUDO_LABELS.values()))})
        x = method.adv_augment(batch.images, batch.rng("augment", 2))
        return method, model, batch, x

    return build


def high_frequencies(x, radius):
    """By the definition of the discrete Fourier transform, as matrices of cosines and sines."""
    size = x.shape[-1]
    frequency = torch.arange(size, dtype=torch.float64)
    wave = torch.exp(-2j * math.pi * frequency[:, None] * frequency / size)
    signed = torch.where(frequency < size / 2, frequency, frequency - size)
    keep = (signed[:, None] ** 2 + signed**2).sqrt() >= radius
    spectrum = wave @ x.to(wave.dtype) @ wave.T * keep
    return (wave.conj() @ spectrum @ wave.conj().T / size**2).real


def clean_rows(method, model, batch, x):
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    streams = [*views, high_frequencies(x, method.config.radius)]
    return [row for stream in streams for row in model.embed(stream, branch="clean").tolist()]


def cluster_loss(model, x, branch):
    features, total = model.features(x, branch=branch), 0.0
    for k, labels in PSEUDO_LABELS.items():
        head = model.heads[f"clusters_{k}"]
        for row, label in zip((features @ head.weight.T + head.bias).tolist(), labels[:6], strict=True):
            total += (math.log(sum(map(math.exp, row))) - row[label]) / 6 / len(PSEUDO_LABELS)
    return total


@pytest.mark.parametrize("branches", [("clean", "adv", "adv_ce"), ("clean", "adv"), ("clean",)])
def test_the_loss_is_equation_7(advcl, nt_xent_loops, branches):
    bn = replace(EncoderConfig().bn, branches=branches)
    method, model, batch, x = advcl(encoder=EncoderConfig("digits_cnn", bn))
    adv, ce = branches[min(1, len(branches) - 1)], branches[-1]
    rows = clean_rows(method, model, batch, x)
    x_cl = method.contrast_adversary(model, x, torch.tensor(rows, dtype=torch.float64), batch)
    rows += model.embed(x_cl, branch=adv).tolist()
    tau = method.config.temperature
    expected = {
        "contrast": tau / 0.07 * sum(nt_xent_loops(rows, tau, num_views=4)) / 24,
        "clusters": 0.2 * cluster_loss(model, method.cluster_adversary(model, x, batch), ce),
    }
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx(expected, rel=1e-9)
    assert method.trained_branches == ("clean", adv, ce)


def test_each_perturbation_raises_its_own_term_with_the_statistics_of_the_batch(advcl, nt_xent_loops, check_attack):
    method, model, batch, x = advcl()
    rows = clean_rows(method, model, batch, x)

    def contrast(images):
        with frozen(model, training=True):
            adversarial = model.embed(images, branch="adv").tolist()
        return sum(nt_xent_loops([*rows, *adversarial], method.config.temperature, num_views=4))

    def clusters(images):
        with frozen(model, training=True):
            return cluster_loss(model, images, "adv_ce")

    z = torch.tensor(rows, dtype=torch.float64)
    check_attack(contrast, x, method.contrast_adversary(model, x, z, batch), eps=0.15)
    check_attack(clusters, x, method.cluster_adversary(model, x, batch), eps=0.15)


def test_every_clean_stream_is_normalised_by_its_own_batch(advcl, nt_xent_loops):
    method, model, batch, x = advcl(ce_weight=0.0)
    model.train()
    with frozen(model, training=True):
        rows = clean_rows(method, model, batch, x)
        x_cl = method.contrast_adversary(model, x, torch.tensor(rows, dtype=torch.float64), batch)
        rows += model.embed(x_cl, branch="adv").tolist()
    tau = method.config.temperature
    expected = tau / 0.07 * sum(nt_xent_loops(rows, tau, num_views=4)) / 24
    terms = method.training_loss(model, batch)
    assert list(terms) == ["contrast"] and terms["contrast"].item() == pytest.approx(expected, rel=1e-9)
    assert method.trained_branches == ("clean", "adv")


def test_refreshed_clusters_keep_their_numbers():
    # Three groups on the circle: from the clusters before, each stays what it was, whatever its number.
    angles = torch.tensor([0.0, 0.02, 2.0, 2.01, 2.02, 4.0, 4.03, 0.01])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    before = torch.tensor([2, 2, 0, 0, 0, 1, 1, 1])  # the last one strayed
    for seed in range(5):
        labels, _ = kmeans(points, 3, Rng.create(seed, "kmeans", torch.arange(8)), start=before)
        assert labels.tolist() == [2, 2, 0, 0, 0, 1, 1, 2]


def test_a_method_starts_from_the_clusters_it_has(small, monkeypatch):
    method, model, batch = small("advcl", clusters=(2, 3), refresh_epochs=2, size=30)
    seen = []

    def fake(embeddings, clusters, rng, start=None):
        seen.append(None if start is None else start.tolist())
        return torch.full((30,), len(seen)), embeddings

    monkeypatch.setattr("clead.methods.advcl.kmeans", fake)
    for epoch in range(3):
        method.start_epoch(model, lambda indices: batch.images[indices], 30, epoch)
    assert seen == [None, None, [1] * 30, [2] * 30]
    assert method.pseudo_labels.tolist() == [[3] * 30, [4] * 30]


def test_too_few_images_for_the_clusters_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="need at least 300 training images, got 256"):
        main(["advcl", "--clusters", "10", "300", "--train-samples", "256", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_settings_that_make_no_sense_are_refused():
    config = RECIPES["advcl_digits"].config
    for clusters in ((), (0,), (3, 3)):
        with pytest.raises(UserError, match="clusters must be different numbers above 0"):
            replace(config, clusters=clusters)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    flags = "--epochs 4 --train-samples 256 --stages pretrain --checkpoint-every 1 --refresh-epochs 3"
    command = ["advcl", *flags.split(), "--out"]
    main([*command, str(tmp_path / "whole")])
    original = AdvCL.start_epoch

    def interrupted(self, model, images, size, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        original(self, model, images, size, epoch)

    monkeypatch.setattr(AdvCL, "start_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*command, str(tmp_path / "cut")])
    monkeypatch.undo()
    main([*command, str(tmp_path / "cut"), "--resume"])
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert len(losses[0]) == 8 and losses[0] == losses[1]
