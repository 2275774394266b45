"""The data of figures against closed forms, float64 loops and hand-placed points."""

import math

import pytest
import torch
from torch import nn

from clead.data import Dataset
from clead.models import BatchNormConfig, LinearHead, Model, build_encoder
from clead.protocols.figure_data import FIGURE_DATA, Look, NotApplicable
from clead.protocols.figure_data.batch_norm import running
from clead.protocols.figure_data.class_distances import mean_distances
from clead.protocols.figure_data.feature_inversion import STEP, STEPS
from clead.protocols.figure_data.input_surface import loss_surface as input_loss_surface
from clead.protocols.figure_data.weight_surface import filter_direction
from clead.protocols.figure_data.weight_surface import loss_surface as weight_loss_surface
from clead.protocols.subject import Classifier, Subject
from clead.rng import Rng

EPS = 0.1


class TwoLayers(nn.Module):
    """features = A x, logits = B features, on images [B, 1, 2, 3]."""

    def __init__(self, features=8, classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.encode = nn.Parameter(torch.randn(features, 6, generator=generator))
        self.classify = nn.Parameter(torch.randn(classes, features, generator=generator))

    def features(self, x):
        return x.flatten(1) @ self.encode.T

    def forward(self, x):
        return self.features(x) @ self.classify.T


def look_at(module, images, labels, encodings=None, classes=3):
    dataset = Dataset("made/test", images, labels, tuple("abcdefghij"[:classes]), 255)
    key = {"run": "r", "model": "trained", "protocol": "linear_eval", "dataset": "made", "split": "test", "seed": 3}
    classifier = Classifier(module, module, encodings or {}, temperature=0.5)
    return Look(Subject("r", classifier, dataset, torch.arange(len(images)), key, 3), EPS)


@pytest.fixture
def linear():
    """A look at a linear encoder and classifier, and 40 images of three classes well inside the box."""
    generator = torch.Generator().manual_seed(0)
    module = TwoLayers()
    images = torch.randint(80, 176, (40, 1, 2, 3), generator=generator, dtype=torch.uint8)
    return look_at(module, images, torch.arange(40) % 3, {"features": module.features})


def tensors(name, look):
    return FIGURE_DATA[name](look).tensors


# class distances


def test_distances_between_hand_placed_clusters():
    z = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 3.0], [0.0, 1.0], [-1.0, 0.0]])
    found = mean_distances(z, torch.tensor([0, 0, 1, 1, 2]), 4)
    root = math.sqrt(2)
    nan = math.nan  # one image has no pair within its class, and no image none at all
    expected = [[0.0, root, 2.0, nan], [root, 0.0, root, nan], [2.0, root, nan, nan], [nan] * 4]
    torch.testing.assert_close(found, torch.tensor(expected).double(), equal_nan=True)


def test_distances_are_those_of_the_loop(linear):
    found = FIGURE_DATA["class_distances"](linear)
    z = linear.encodings(40)["features"].double()
    z = z / z.norm(dim=1, keepdim=True)
    pairs: dict[tuple[int, int], list[float]] = {}
    for i in range(40):
        for j in range(40):
            if i != j:
                pairs.setdefault((i % 3, j % 3), []).append(math.dist(z[i].tolist(), z[j].tolist()))
    expected = [[sum(pairs[a, b]) / len(pairs[a, b]) for b in range(3)] for a in range(3)]
    torch.testing.assert_close(found.tensors["features"], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    between = [value for (a, b), values in pairs.items() if a != b for value in values]
    within = [value for (a, b), values in pairs.items() if a == b for value in values]
    ratio = (sum(between) / len(between)) / (sum(within) / len(within))
    assert float(found.facts["ratio_features"]) == pytest.approx(ratio, rel=1e-3)


# t-SNE


def test_tsne_keeps_clusters_together():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = (40 + 80 * labels.view(-1, 1, 1, 1) + torch.randint(0, 9, (60, 1, 2, 3), generator=generator)).byte()
    module = TwoLayers()
    found = tensors("tsne", look_at(module, images, labels, {"features": module.features}))
    distances = torch.cdist(found["points"], found["points"]).fill_diagonal_(math.inf)
    assert found["points"].dtype == torch.float32
    assert torch.equal(labels[distances.argmin(1)], found["labels"])


def test_tsne_of_a_handful_of_images_is_refused(linear):
    few = look_at(
        TwoLayers(), linear.subject.test.images[:6], torch.arange(6) % 3, {"features": lambda x: x.flatten(1)}
    )
    with pytest.raises(NotApplicable, match="at least 7 images, got 6"):
        tensors("tsne", few)


# feature inversion


def test_inversion_of_a_linear_encoder_walks_along_its_rows(linear):
    found = tensors("feature_inversion", linear)
    weight = linear.subject.classifier.module.encode.detach().double()
    x = linear.subject.images.double().flatten(1)
    spread = (x @ weight.T).std(0, correction=0)
    assert found["components"].tolist() == spread.argsort(descending=True)[:4].tolist()
    for seed, rows in zip(found["seeds"], found["inverted"], strict=True):
        for component, row in zip(found["components"], rows, strict=True):
            # The gradient is the row of the matrix wherever the image is, so every pixel walks straight to its wall.
            along = weight[component] / weight[component].norm()
            end = (seed.double().flatten() + STEPS * STEP * math.sqrt(6) * along).clamp(0, 1)
            torch.testing.assert_close(row.flatten().double(), end, rtol=0, atol=1e-4)
    assert found["seeds"].shape == (3, 1, 2, 3)
    assert bool((found["after"] > found["before"]).all())
    images = found["seeds"][:2]
    assert torch.equal(images, linear.subject.images[:2])  # the first of class 0 and of class 1


# surfaces


def test_input_surface_of_a_quadratic():
    generator = torch.Generator().manual_seed(0)
    x, centre, first, second = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(4))
    axis = torch.linspace(-1, 1, 5)
    found = input_loss_surface(lambda x: 0.5 * (x - centre).square().sum(1), x, first, second, axis)
    for i, a in enumerate(axis.tolist()):
        for j, b in enumerate(axis.tolist()):
            points = [
                sum((x[n, k] + a * first[n, k] + b * second[n, k] - centre[n, k]) ** 2 for k in range(6)) / 2
                for n in range(4)
            ]
            assert float(found[i, j]) == pytest.approx(float(sum(points)) / 4, rel=1e-6)


def test_input_surface_climbs_along_the_gradient(linear):
    found = tensors("input_surface", linear)
    loss, axis = found["loss"], found["axis"]
    assert axis[0] == pytest.approx(-2 * EPS) and axis[-1] == pytest.approx(2 * EPS) and float(axis[8]) == 0
    subject = linear.subject
    clean = nn.functional.cross_entropy(subject.classifier.predict(subject.images), subject.labels)
    assert float(loss[8, 8]) == pytest.approx(float(clean), rel=1e-5)
    assert bool((loss[8:].diff(dim=0)[:, 8] > 0).all())  # cross-entropy of a linear classifier is convex
    assert float(loss[16, 8]) > float(loss[8].max())  # no random signs do as much


def test_weight_surface_of_a_quadratic():
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    centre = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    first, second = (filter_direction(module, 0, step) for step in (0, 1))
    assert list(first) == ["weight"]
    axis = torch.linspace(-0.5, 0.5, 3)
    module.train()
    found = weight_loss_surface(
        module, lambda: (module.weight - centre).square().sum() / 2 + module.bias.sum(), first, second, axis
    )
    for i, a in enumerate(axis.tolist()):
        for j, b in enumerate(axis.tolist()):
            moved = before["weight"].double() + a * first["weight"].double() + b * second["weight"].double()
            expected = float((moved - centre.double()).square().sum() / 2 + before["bias"].double().sum())
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-5)
    assert module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_directions_are_as_long_as_the_filters_and_differ():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 1))
    first, second = (filter_direction(module, 0, step) for step in (0, 1))
    assert list(first) == ["0.weight", "2.weight"]
    for name, direction in first.items():
        weight = module.get_parameter(name)
        for row, of in zip(direction, weight.detach(), strict=True):
            assert float(row.norm()) == pytest.approx(float(of.norm()), rel=1e-5)
        cosine = nn.functional.cosine_similarity(direction.flatten(), second[name].flatten(), dim=0)
        assert abs(float(cosine)) < 0.7
    assert torch.equal(first["0.weight"], filter_direction(module, 0, 0)["0.weight"])


def test_weights_come_back_after_an_error(linear):
    module = TwoLayers()
    before = module.encode.detach().clone()

    def fail():
        if not torch.equal(module.encode, before):
            raise RuntimeError("in the middle")
        return torch.zeros(())

    direction = filter_direction(module, 0, 0)
    with pytest.raises(RuntimeError, match="in the middle"):
        weight_loss_surface(module, fail, direction, direction, torch.tensor([0.0, 1.0]))
    assert torch.equal(module.encode, before)


# adversarial against random perturbations


def contrastive_loss(z, other, temperature):
    """Mean InfoNCE by loops in float64; row i of ``other`` is the positive of row i of ``z``."""
    total = 0.0
    for i in range(len(z)):
        cosines = [float(torch.dot(z[i], of) / (z[i].norm() * of.norm())) / temperature for of in other]
        total += math.log(sum(math.exp(value) for value in cosines)) - cosines[i]
    return total / len(z)


def test_perturbation_losses_are_those_of_the_loop(linear):
    found = tensors("perturbation_losses", linear)
    torch.testing.assert_close(found["eps"], EPS * torch.arange(7) / 4)
    x, labels = linear.subject.images.double(), linear.subject.labels
    weight = linear.subject.classifier.module.encode.detach().double()
    head = linear.subject.classifier.module.classify.detach().double()
    point = x.flatten(1).clone().requires_grad_()
    z, anchors = point @ weight.T, x.flatten(1) @ weight.T
    logits = nn.functional.normalize(anchors) @ nn.functional.normalize(z).T / 0.5
    nn.functional.cross_entropy(logits, torch.arange(40)).backward()
    signs = Rng.create(3, "eval_attack", torch.arange(40)).uniform(6, -1.0, 1.0).double().sign()
    for index, eps in enumerate(found["eps"].tolist()):
        noisy = (x.flatten(1) + eps * signs).clamp(0, 1)
        assert float(found["random_contrastive"][index]) == pytest.approx(
            contrastive_loss(anchors, noisy @ weight.T, 0.5), rel=1e-4
        )
        moved = (x.flatten(1) + eps * point.grad.sign()).clamp(0, 1)
        expected = contrastive_loss(anchors, moved @ weight.T, 0.5)
        assert float(found["adversarial_contrastive"][index]) == pytest.approx(expected, rel=1e-4)
        chances = (moved @ weight.T @ head.T).softmax(1)
        entropy = -sum(math.log(float(chances[n, labels[n]])) for n in range(40)) / 40
        assert float(found["adversarial_cross_entropy"][index]) == pytest.approx(entropy, rel=1e-4)
    for loss in ("contrastive", "cross_entropy"):
        assert found[f"random_{loss}"][0] == found[f"adversarial_{loss}"][0]
    assert bool((found["adversarial_contrastive"][1:] > found["random_contrastive"][1:]).all())


# batch norm


def test_measured_statistics_are_those_of_the_images():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(6, 3))
    with torch.no_grad():
        module[2].weight.copy_(torch.eye(3, 6))
    images = torch.randint(60, 190, (30, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = FIGURE_DATA["batch_norm"](look_at(module.eval(), images, torch.arange(30) % 3))
    x = images.double() / 255
    assert found.tensors["layer"].tolist() == [0]
    assert float(found.tensors["clean_mean"]) == pytest.approx(float(x.mean()), rel=1e-5)
    assert float(found.tensors["clean_variance"]) == pytest.approx(float((x - x.mean()).square().mean()), rel=1e-5)
    assert found.tensors["adversarial_mean"] != found.tensors["clean_mean"]
    assert abs(float(found.tensors["adversarial_mean"] - found.tensors["clean_mean"])) < EPS
    assert not module[0]._forward_pre_hooks


def test_running_statistics_of_two_branches():
    config = BatchNormConfig(branches=("clean", "adv"), evaluation_branch="adv")
    encoder = build_encoder("digits_cnn", in_channels=1, mean=(0.5,), std=(0.5,), bn=config)
    model = Model(encoder, {"classifier": LinearHead(encoder.feature_dim, 3)}).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.fill_((1.0 if "branch.clean" in name else 2.0) + (10.0 if name.endswith("var") else 0.0))
    images = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)
    look = look_at(model, images, torch.arange(9) % 3)
    found = FIGURE_DATA["batch_norm"](look)
    kinds = {"clean_mean": 1.0, "adversarial_mean": 2.0, "clean_variance": 11.0, "adversarial_variance": 12.0}
    assert all(set(found.tensors[name].tolist()) == {value} for name, value in kinds.items())
    layers = found.tensors["layer"].bincount().tolist()
    assert layers == [len(mean) for mean, _ in running(model)["clean"]] and len(layers) > 2
    assert "running statistics" in found.facts["source"]


@pytest.mark.parametrize("name", ["tsne", "class_distances", "feature_inversion", "perturbation_losses", "batch_norm"])
def test_what_a_bare_classifier_has_no_figure_of(name, linear):
    bare = look_at(TwoLayers(), linear.subject.test.images, linear.subject.labels)
    with pytest.raises(NotApplicable, match="needs a model with"):
        FIGURE_DATA[name](bare)
