"""Accuracy under attack against the closed form of a linear classifier, and what must not matter."""

from dataclasses import replace

import pytest
import torch

from clead.data import Dataset
from clead.errors import UserError
from clead.models import BatchNormConfig, LinearHead, Model, build_encoder, initialise
from clead.protocols.catalogue import CATALOGUE, find_attack
from clead.protocols.robustness import HEADLINE, attack_all, robustness, verify
from clead.protocols.subject import Classifier, Subject

OURS = ["fgsm", "rfgsm", "ffgsm", "pgd20", "cw", "mifgsm10", "targeted20"]


def norm_of(weight, norm):
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    return float(weight.detach().double().flatten().norm(dual))


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd20", "cw", "mifgsm10", "targeted20", "pgd40_l2", "mifgsm40_l2", "fgsm_l2"]
)
def test_a_linear_classifier_falls_exactly_where_the_closed_form_says(linear, name):
    subject, margins = linear
    spec = find_attack(name)
    distances = margins / norm_of(subject.classifier.module.weight, spec.norm)
    eps = float(distances.median())
    clear = (distances - eps).abs() > 2e-3 * eps  # off the boundary that float32 cannot tell
    wrong = torch.arange(60) < 5
    outcome = attack_all(subject, spec, eps)
    assert clear.sum() > 50
    assert torch.equal(outcome.robust[clear], ((distances > eps) & ~wrong)[clear])


@pytest.mark.parametrize("name", [*OURS, "pgd20_l2", "pgd20_l1", "autoattack"])
def test_eps_zero_changes_nothing(network, name):
    outcome = attack_all(network, find_attack(name), 0.0, skip=False)
    assert torch.equal(outcome.x_adv, network.images)
    assert torch.equal(outcome.robust, network.correct(network.images))


@pytest.mark.parametrize("name", ["pgd5", "targeted5", "rfgsm", "ffgsm"])
def test_skipping_broken_images_and_the_batch_size_change_no_row(network, name):
    spec = find_attack(name, restarts=3)
    whole = attack_all(network, spec, 0.14, skip=False)
    assert 0.1 < whole.robust.double().mean() < 0.9
    assert torch.equal(attack_all(network, spec, 0.14).robust, whole.robust)
    assert torch.equal(attack_all(replace(network, batch_size=7), spec, 0.14).robust, whole.robust)


def test_fgsm_is_one_full_step_of_pgd_sample_for_sample(network):
    fgsm = find_attack("fgsm")
    pgd = replace(find_attack("pgd1"), random_start=False)
    ours, theirs = (attack_all(network, spec, 0.1, skip=False) for spec in (fgsm, pgd))
    assert torch.equal(ours.robust, theirs.robust)
    x = network.images.requires_grad_()
    (grad,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(network.classifier.logits(x), network.labels, reduction="sum"), x
    )
    torch.testing.assert_close(ours.x_adv, (x + 0.1 * grad.sign()).clamp(0, 1).detach(), rtol=0, atol=1e-6)


def test_one_step_with_a_random_start_ends_where_the_papers_put_it(linear):
    subject, _ = linear
    toward = (1 - 2 * subject.labels).view(-1, 1, 1, 1) * subject.classifier.module.weight.detach().sign()
    eps = 0.02
    shift = {name: attack_all(subject, find_attack(name), eps, skip=False).x_adv - subject.images for name in OURS[1:3]}
    half = shift["rfgsm"] / (eps / 2)  # -1 + 1 or 1 + 1 in the direction of the loss
    assert ((half - (toward + half.round() - toward)).abs() < 1e-4).all()
    assert (((half * toward).round() == 0) | ((half * toward).round() == 2)).all()
    assert 0.4 < ((half * toward).round() == 0).double().mean() < 0.6
    along = shift["ffgsm"] * toward / eps  # U(-1, 1) + 1.25, cut at 1
    assert along.min() > 0.2499 and along.max() < 1.0001
    assert abs((along < 0.999).double().mean() - 0.375) < 0.06


def test_more_restarts_and_a_larger_radius_never_help_the_model(network):
    one, five = (attack_all(network, find_attack("pgd3", restarts=n), 0.14).robust for n in (1, 5))
    assert not (five & ~one).any() and (five != one).any()
    counts = [int(attack_all(network, find_attack("pgd20"), eps).robust.sum()) for eps in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0


def test_mifgsm_follows_its_recursion(network):
    outcome = attack_all(network, find_attack("mifgsm3"), 0.06, skip=False)
    x = network.images.double()
    module = network.classifier.module.double()
    try:
        x_adv, momentum = x.clone(), torch.zeros_like(x)
        for _ in range(3):
            point = x_adv.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(module(point), network.labels, reduction="sum")
            (grad,) = torch.autograd.grad(loss, point)
            momentum = momentum + grad / grad.abs().sum((1, 2, 3), keepdim=True)
            x_adv = (x_adv + 0.02 * momentum.sign()).clamp(x - 0.06, x + 0.06).clamp(0, 1)
    finally:
        module.float()
    same = ((outcome.x_adv - x_adv).abs() < 1e-6).double().mean()
    assert same > 0.999  # a gradient of exactly zero has no sign


def test_images_that_were_wrong_stay_wrong(network):
    labels = network.test.labels.clone()
    labels[:40] = (labels[:40] + 1) % 5
    subject = replace(network, test=replace(network.test, labels=labels))
    clean = subject.correct(subject.images)
    for name in OURS:
        assert not (attack_all(subject, find_attack(name), 0.1).robust & ~clean).any()


def test_the_model_is_left_as_it_was(network):
    module = network.classifier.module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    module.train()
    try:
        list(robustness(network, [find_attack(name) for name in OURS], [0.1]))
        assert module.training
    finally:
        module.eval()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rows_name_the_attack_and_count_the_images(network):
    rows = list(robustness(replace(network, samples=torch.arange(50)), [find_attack("pgd20", restarts=2)], [0.05, 0.1]))
    assert [row["name"] for row in rows] == ["clean", "pgd20", "pgd20"]
    last = rows[-1]
    key = ("attack", "norm", "eps", "steps", "step_size", "restarts", "samples", "flags")
    assert tuple(last[name] for name in key) == ("pgd", "linf", 0.1, 20, 0.025, 2, 50, ["subset"])
    assert last["low"] <= last["accuracy"] <= last["high"] and last["accuracy"] * 50 == round(last["accuracy"] * 50)


def test_a_perturbation_outside_the_ball_or_the_box_is_never_counted():
    x = torch.full((2, 1, 2, 2), 0.5)
    verify(x + 0.1, x, "linf", 0.1, "a")
    verify(x + 0.1, x, "l2", 0.2, "a")
    for x_adv, norm, eps in (
        (x + 0.1001, "linf", 0.1),
        (x + 0.1, "l2", 0.199),
        (x + 0.1, "l1", 0.39),
        (x + 2, "l2", 9),
    ):
        with pytest.raises(RuntimeError, match="left the ball"):
            verify(x_adv, x, norm, eps, "a")
    with pytest.raises(RuntimeError, match="left the ball"):
        verify(x * torch.nan, x, "linf", 1.0, "a")


def test_a_model_that_gives_nan_is_an_error(network):
    def broken(x):
        return network.classifier.logits(x).log()

    subject = replace(network, classifier=Classifier(network.classifier.module, broken))
    with pytest.raises(UserError, match="finite logits, got NaN or infinity"):
        list(robustness(subject, [find_attack("pgd20")], [0.1]))


def test_labels_or_logits_of_other_classes_are_an_error(network):
    with pytest.raises(UserError, match="labels must be in 0 … 3"):
        replace(network, test=replace(network.test, classes=("a", "b", "c", "d")))
    fewer = Classifier(network.classifier.module, lambda x: network.classifier.logits(x)[:, :4])
    with pytest.raises(UserError, match="expected logits of the 5 classes"):
        list(robustness(replace(network, classifier=fewer), [], []))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pgd", ("pgd20", "pgd", "linf", 20, 0.25)),
        ("pgd40_l2", ("pgd40", "pgd", "l2", 40, 2.5 / 40)),
        ("pgd2", ("pgd2", "pgd", "linf", 2, 0.5)),
        ("cw", ("cw", "cw_linf", "linf", 20, 0.25)),
        ("cw_linf", ("cw", "cw_linf", "linf", 20, 0.25)),
        ("cw_l2", ("cw_l2", "cw_l2", "l2", 200, None)),
        ("mifgsm", ("mifgsm10", "mifgsm", "linf", 10, 0.1)),
        ("apgd_t_l1", ("apgd_t", "apgd_t", "l1", 100, None)),
    ],
)
def test_names(name, expected):
    spec = find_attack(name)
    assert (spec.name, spec.attack, spec.norm, spec.steps, spec.relative_step) == expected


@pytest.mark.parametrize(
    ("name", "norm", "message"),
    [
        ("pdg20", "linf", "unknown attack 'pdg20'"),
        ("fgsm5", "linf", "unknown attack 'fgsm5'"),
        ("pgd0", "linf", "unknown attack 'pgd0'"),
        ("rfgsm", "l2", "rfgsm exists in linf, got the norm 'l2'"),
        ("cw", "l2", "cw exists in linf, got the norm 'l2'"),
    ],
)
def test_bad_names(name, norm, message):
    with pytest.raises(UserError, match=message):
        find_attack(name, norm=norm)


def test_every_attack_of_the_contract_is_there():
    ids = {spec.attack for spec in CATALOGUE.values()}
    assert {"fgsm", "rfgsm", "ffgsm", "pgd", "cw_linf", "cw_l2"} < ids
    assert {"apgd_ce", "apgd_dlr", "apgd_t", "fab", "square", "autoattack"} < ids
    assert HEADLINE not in ids


@pytest.fixture
def ours(network):
    """A model of ours with two batch-norm branches of its own statistics each."""
    bn = BatchNormConfig(branches=("clean", "adv"))
    encoder = build_encoder("digits_cnn", in_channels=1, mean=(0.3,), std=(0.4,), bn=bn)
    model = Model(encoder, {"classifier": LinearHead(encoder.feature_dim, 5)})
    initialise(model, 0)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if ".branch." in name:
            value.uniform_(0.5, 1.5, generator=generator)
    classifier = Classifier.of(model.eval(), "adv")
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    model.heads["classifier"].bias.data -= classifier.predict(images / 255).mean(0)  # or all are of one class
    labels = classifier.predict(images / 255).argmax(1)
    test = Dataset("made/test", images, labels, tuple("abcde"), 255)
    return Subject("ours", classifier, test, torch.arange(60), network.key, 3)


@pytest.mark.parametrize("name", ["fgsm", "pgd10", "cw10", "pgd10_l2", "targeted5", "mifgsm5", "rfgsm"])
def test_an_attack_on_the_folded_model_is_the_attack_on_the_model(ours, name):
    spec, eps = find_attack(name), 0.15 if name.endswith("l2") else 0.04
    logits = ours.classifier.logits
    plain = replace(ours, classifier=replace(ours.classifier, logits=lambda x: logits(x)))
    assert ours.classifier.folded().module is not ours.classifier.module
    assert plain.classifier.folded() is plain.classifier  # what nobody knows is not folded
    before = {key: value.clone() for key, value in ours.classifier.module.state_dict().items()}
    fast, slow = (attack_all(subject, spec, eps, skip=False) for subject in (ours, plain))
    assert 0 < fast.robust.sum() < 60 and torch.equal(fast.robust, slow.robust)
    near = (fast.x_adv - slow.x_adv).abs() < 1e-5
    assert near.double().mean() > 0.999  # a gradient of nearly zero may have another sign
    assert all(torch.equal(value, before[key]) for key, value in ours.classifier.module.state_dict().items())


def test_success_is_what_the_model_itself_says(ours, monkeypatch):
    other = replace(ours.classifier, logits=lambda x: -ours.classifier.logits(x))
    monkeypatch.setattr(Classifier, "folded", lambda self: other)
    outcome = attack_all(ours, find_attack("pgd5"), 0.1)
    assert torch.equal(outcome.robust, ours.correct(outcome.x_adv)) and outcome.robust.sum() > 40
