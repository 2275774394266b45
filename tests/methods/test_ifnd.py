import json
import math
from dataclasses import replace

import pytest
import torch

from clead.errors import UserError
from clead.methods.clusters import kmeans
from clead.methods.ifnd import IFND
from clead.rng import Rng
from clead.train import main


def test_the_loss_equals_loops_given_clusters_and_confidence(small, contrastive_row):
    method, model, batch = small("ifnd", progress=0.6)
    # Six images of a split of eight, at two granularities. Trusted at 0.6: those with doubt below it.
    pseudo_labels = [[0, 0, 0, 1, 1, 1, 0, 1], [0, 1, 0, 1, 0, 1, 0, 1]]
    doubt = [[0.0, 0.5, 0.75, 0.1, 0.2, 0.9, 0.3, 0.4], [0.2, 0.1, 0.0, 0.3, 0.7, 0.5, 0.8, 0.4]]
    method.load_state_dict({"pseudo_labels": torch.tensor(pseudo_labels), "doubt": torch.tensor(doubt)})
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    rows = torch.cat([model.embed(view, branch="clean") for view in views]).tolist()
    expected, false_negatives = 0.0, []
    for label, unsure in zip(pseudo_labels, doubt, strict=True):
        for i in range(12):
            partner, denominator = (i + 6) % 12, []
            for j in range(12):
                a, b = i % 6, j % 6
                if a != b and label[a] == label[b] and unsure[a] < 0.6 and unsure[b] < 0.6:
                    false_negatives.append((i, j))
                elif i != j:
                    denominator.append(j)
            expected += contrastive_row(rows[i], rows, [partner], denominator, method.config.temperature) / 12 / 2
    # By hand the images 0-1, 3-4; 0-2, 1-3, 1-5, 3-5: in both orders and all views.
    assert len(false_negatives) == 6 * 2 * 4
    assert method.training_loss(model, batch)["nt_xent"].item() == pytest.approx(expected, rel=1e-10)


def test_nothing_is_trusted_at_the_start_and_everything_at_the_end(small):
    method, model, batch = small("ifnd")
    method.load_state_dict({"pseudo_labels": torch.zeros(1, 6, dtype=torch.int64), "doubt": torch.arange(6)[None] / 6})
    simclr = small("simclr")[0]
    start = method.training_loss(model, batch)["nt_xent"].item()
    assert start == simclr.training_loss(model, batch)["nt_xent"].item()
    # All images in one trusted cluster: no negative is left, and the loss of the only candidate is 0.
    assert method.training_loss(model, replace(batch, progress=1.0))["nt_xent"].item() == 0.0


def test_kmeans_finds_separated_clusters():
    angles = torch.tensor([0.0, 0.02, 2.0, 2.01, 2.02, 4.0, 4.03, 0.01])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    for seed in range(5):
        rng = Rng.create(seed, "kmeans", torch.arange(8))
        labels, centroids = kmeans(points, 3, rng)
        again, _ = kmeans(points, 3, rng)
        assert torch.equal(labels, again)
        # From a bad start two clusters may share a centroid; every point is still with its nearest one.
        assert torch.equal(labels, torch.cdist(points, centroids).argmin(1))


def test_confidence_orders_images_by_their_share_at_their_own_centroid(small):
    method, model, batch = small("ifnd", clusters=(2, 3), size=30)
    method.start_epoch(model, lambda indices: batch.images[indices], 30, epoch=0)
    assert method.pseudo_labels.shape == method.doubt.shape == (2, 30)
    rows = model.embed(batch.images, branch="clean").tolist()
    unit = [[value / math.hypot(*row) for value in row] for row in rows]
    for labels, doubt, clusters in zip(method.pseudo_labels.tolist(), method.doubt, (2, 3), strict=True):
        assert sorted(doubt.tolist()) == pytest.approx([rank / 30 for rank in range(30)])
        members = [[unit[i] for i in range(30) if labels[i] == c] for c in range(clusters)]
        means = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in members]
        shares = []
        for i in range(30):
            cosines = [sum(p * q for p, q in zip(unit[i], m, strict=True)) / math.hypot(*m) for m in means]
            weights = [math.exp(cosine / method.config.temperature) for cosine in cosines]
            shares.append(weights[labels[i]] / sum(weights))
        in_order = [shares[i] for i in doubt.argsort().tolist()]
        assert all(a >= b - 1e-9 for a, b in zip(in_order, in_order[1:], strict=False))


def test_too_few_images_for_the_clusters_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="need at least 300 training images, got 256"):
        main(["ifnd", "--clusters", "10", "300", "--train-samples", "256", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_the_clusters_of_the_interrupted_one(tmp_path, monkeypatch):
    # Refreshed at epochs 0 and 3, saved at epoch 1 and 2: the clusters of epoch 0 exist in the checkpoint only.
    flags = "--epochs 4 --train-samples 256 --stages pretrain --checkpoint-every 1 --refresh-epochs 3"
    command = ["ifnd", *flags.split(), "--out"]
    main([*command, str(tmp_path / "whole")])
    original = IFND.start_epoch

    def interrupted(self, model, images, size, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        original(self, model, images, size, epoch)

    monkeypatch.setattr(IFND, "start_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*command, str(tmp_path / "cut")])
    monkeypatch.undo()
    main([*command, str(tmp_path / "cut"), "--resume"])
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert len(losses[0]) == 8 and losses[0] == losses[1]
