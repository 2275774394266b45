import math
import shutil

import pytest
import torch

from clead.attacks import frozen
from clead.augment import high_pass
from clead.data import load_digits
from clead.engine import checkpoint
from clead.errors import UserError
from clead.loading import load
from clead.methods.advcl import AdvCL
from clead.methods.clusters import kmeans
from clead.rng import Rng
from clead.train import main

CLUSTERS = (2, 3)


@pytest.fixture
def advcl(small):
    """(method, model, batch) with given clusters of the first twelve digits."""
    method, model, batch = small("advcl", clusters=CLUSTERS)
    method.pseudo_labels = torch.tensor([[0, 1, 1, 0, 1, 0] * 2, [2, 0, 1, 1, 0, 2] * 2])
    return method, model, batch


def streams(method, batch):
    """x and the three clean streams."""
    views = [method.augment(batch.images, batch.rng("augment", view)) for view in (0, 1)]
    x = method.adv_augment(batch.images, batch.rng("augment", 2))
    return x, torch.cat([*views, high_pass(x, method.config.high_pass_radius)])


def cross_entropy(row, label):
    return math.log(sum(map(math.exp, row))) - row[label]


def test_the_loss_is_the_sum_of_both_terms(advcl, contrastive_row):
    method, model, batch = advcl
    x, clean = streams(method, batch)
    labels = method.pseudo_labels[:, :6]
    x_cl = method.contrastive_adversary(model, model.embed(clean, branch="clean"), x, batch)
    x_ce = method.cluster_adversary(model, labels, x, batch)
    rows = [*model.embed(clean, branch="clean").tolist(), *model.embed(x_cl, branch="adv").tolist()]
    contrast = 0.0
    for i in range(24):
        others = [j for j in range(24) if j != i]
        positives = [j for j in others if j % 6 == i % 6]
        contrast += contrastive_row(rows[i], rows, positives, others, 0.2) / 24
    features = model.features(x_ce, branch="adv_ce")
    cluster = 0.0
    for k, own in zip(CLUSTERS, labels.tolist(), strict=True):
        logits = model.heads[f"clusters_{k}"](features).tolist()
        cluster += sum(cross_entropy(row, y) for row, y in zip(logits, own, strict=True)) / 6 / len(CLUSTERS)
    terms = {name: term.item() for name, term in method.training_loss(model, batch).items()}
    assert terms == pytest.approx({"contrast": contrast * 0.2 / 0.2, "ce_adv": 0.2 * cluster}, rel=1e-10)


def test_the_base_temperature_scales_the_contrastive_term(small):
    terms = []
    for base in (0.2, 0.07):
        method, model, batch = small("advcl", clusters=CLUSTERS, base_temperature=base)
        method.pseudo_labels = torch.zeros(2, 6, dtype=torch.int64)
        terms.append({name: term.item() for name, term in method.training_loss(model, batch).items()})
    assert terms[1]["contrast"] == pytest.approx(terms[0]["contrast"] * 0.2 / 0.07, rel=1e-10)
    assert terms[1]["ce_adv"] == terms[0]["ce_adv"]


def test_both_attacks_raise_their_loss_in_train_mode(advcl, check_attack):
    method, model, batch = advcl
    x, clean = streams(method, batch)
    labels = method.pseudo_labels[:, :6]
    with frozen(model, training=True), torch.no_grad():
        z = torch.cat([model.embed(part, branch="clean") for part in clean.chunk(3)])

        def contrast(images):
            return method.contrast(torch.cat([z, model.embed(images, branch="adv")])).sum().item()

        def cluster(images):
            return method.cluster_loss(model, model.features(images, branch="adv_ce"), labels).sum().item()

        x_cl = method.contrastive_adversary(model, z, x, batch)
        x_ce = method.cluster_adversary(model, labels, x, batch)
        check_attack(contrast, x, x_cl, 0.15)
        check_attack(cluster, x, x_ce, 0.15)
    assert not torch.equal(x_cl, x_ce)


def test_every_stream_has_its_own_statistics_and_attacks_move_none(advcl):
    method, model, batch = advcl
    norm = next(module for module in model.modules() if hasattr(module, "branch"))
    seen = []
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    x, _ = streams(method, batch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    method.contrastive_adversary(model, torch.zeros(18, 64, dtype=x.dtype), x, batch)
    method.cluster_adversary(model, method.pseudo_labels[:, :6], x, batch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    seen.clear()
    method.training_loss(model, batch)
    assert (seen[0], seen[-1]) == ((("clean", 6),) * 3, (("adv", 6), ("adv_ce", 6)))
    assert set(seen[1:-1]) == {"adv", "adv_ce"}  # the attacks
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("encoder") and "running" in key}


def test_k_means_of_earlier_clusters_keeps_their_numbers():
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
    rng = Rng.create(0, "kmeans", torch.arange(6))
    earlier = torch.tensor([2, 2, 0, 0, 1, 1])
    assert kmeans(points, 3, rng, earlier)[0].tolist() == earlier.tolist()
    # One image has moved to another group since.
    assert kmeans(points, 3, rng, torch.tensor([2, 2, 0, 2, 1, 1]))[0].tolist() == earlier.tolist()
    # Cluster 0 has lost all its members: a random row takes its place, and all three are used.
    assert sorted(set(kmeans(points, 3, rng, torch.tensor([2, 2, 1, 1, 1, 1]))[0].tolist())) == [0, 1, 2]


def test_clusters_are_those_of_the_features_and_are_refreshed(small):
    method, model, _ = small("advcl", clusters=(2, 4), refresh_epochs=3)
    train = load_digits().train
    method.start_epoch(model.float(), train.batch, 40, epoch=0)
    first = method.pseudo_labels
    assert first.shape == (2, 40) and [len(set(row.tolist())) for row in first] == [2, 4]
    with torch.no_grad():
        unit = model.eval().features(train.batch(torch.arange(40)), branch="adv").double()
    unit = (unit / unit.norm(dim=1, keepdim=True)).tolist()
    for labels, clusters in zip(first.tolist(), (2, 4), strict=True):
        members = [[unit[i] for i in range(40) if labels[i] == c] for c in range(clusters)]
        means = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in members]
        for i in range(40):
            assert math.dist(unit[i], means[labels[i]]) == pytest.approx(min(math.dist(unit[i], m) for m in means))
    method.start_epoch(model, train.batch, 40, epoch=2)
    assert method.pseudo_labels is first
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    method.start_epoch(model, train.batch, 40, epoch=3)
    assert method.pseudo_labels is not first
    other = AdvCL(method.config)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.pseudo_labels, method.pseudo_labels)


@pytest.fixture(scope="module")
def simclr_run(tmp_path_factory):
    """An encoder that is not trained is as good as any to be clustered."""
    out = tmp_path_factory.mktemp("runs") / "simclr"
    main(["simclr", "--epochs", "0", "--stages", "pretrain", "--seed", "7", "--out", str(out)])
    return out


def test_the_features_of_a_run_are_clustered_once(simclr_run, tmp_path):
    out = tmp_path / "advcl"
    few = ["--clusters", "2", "3", "--refresh-epochs", "1", "--attack.steps", "1", "--train-samples", "128"]
    few += ["--device", "cpu"]
    main(["advcl", "--epochs", "2", *few, "--stages", "pretrain", "--features-run", str(simclr_run), "--out", str(out)])
    found = checkpoint.load(checkpoint.latest(out / "checkpoints")).state["method"]["pseudo_labels"]
    samples = torch.arange(128)
    with torch.no_grad():
        features = load(simclr_run).features(load_digits().train.batch(samples), branch="clean")
    rng = Rng.create(0, "kmeans", samples)
    for k, labels in zip((2, 3), found, strict=True):
        assert torch.equal(kmeans(torch.nn.functional.normalize(features), k, rng.view(k))[0], labels)


def test_a_run_that_does_not_fit_is_one_sentence(simclr_run, tmp_path):
    def refused(run, match):
        with pytest.raises(UserError, match=match):
            main(["advcl", "--features-run", str(run), "--out", str(tmp_path / "advcl")])
        assert not (tmp_path / "advcl").exists()

    def changed(name, file, old, new):
        run = shutil.copytree(simclr_run, tmp_path / name)
        path = next(run.glob(file))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return run

    refused(tmp_path / "none", "none/config.json")
    main(["ce", "--epochs", "0", "--stages", "pretrain", "--out", str(tmp_path / "ce")])
    refused(tmp_path / "ce", "features_run must be a run of a method without labels, got .*/ce of 'ce'")
    run = changed("a", "config.json", '"data": "digits"', '"data": "cifar10"')
    refused(run, "features_run must be a run with data 'digits', got .*/a with 'cifar10'")
    run = changed("b", "config.json", '"image_size": null', '"image_size": 16')
    refused(run, "features_run must be a run with image_size None, got .*/b with 16")
    run = changed("c", "run.json", '"pretrain"', "")
    refused(run, "features_run must be a run whose pretrain is finished, got .*/c without it")
    run = changed("d", "checkpoints/*/meta.json", '"num_classes": 10', '"num_classes": 11')
    refused(run, "features_run must be a run on the same images, got .*/d of others")


def test_too_large_a_radius_or_too_few_images_is_one_sentence(tmp_path):
    command = ["advcl", "--epochs", "1", "--stages", "pretrain", "--out"]
    with pytest.raises(UserError, match="high_pass_radius must be at most 5.657"):
        main([*command, str(tmp_path / "a"), "--high-pass-radius", "8", "--train-samples", "128"])
    with pytest.raises(UserError, match="need at least 500 training images, got 256"):
        main([*command, str(tmp_path / "b"), "--clusters", "2", "500", "--train-samples", "256"])
    assert list(tmp_path.iterdir()) == []
