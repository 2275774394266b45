"""What an evaluation must do whatever the model: the tests of reliability that the research notes list."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from clead.attacks.autoattack import available
from clead.protocols import sanity
from clead.protocols.catalogue import find_attack
from clead.protocols.robustness import HEADLINE, attack_all, robustness
from clead.protocols.sanity import quick_checks, thorough_checks
from clead.protocols.subject import Classifier

EVERY = ["fgsm", "rfgsm", "ffgsm", "pgd5", "cw5", "mifgsm5", "targeted5", "pgd5_l2", "pgd5_l1", "mifgsm5_l2", "fgsm_l2"]
needs_library = pytest.mark.skipif(not available(), reason="needs pyautoattack (the extra evaluation)")


def robust(subject, name, eps, **settings):
    return attack_all(subject, find_attack(name), eps, **settings).robust


@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.7])
@pytest.mark.parametrize("name", EVERY)
def test_stored_images_are_in_the_ball_and_the_box(network, name, eps):
    spec, x = find_attack(name), network.images
    x_adv = attack_all(network, spec, eps, skip=False).x_adv
    assert x_adv.dtype == torch.float32 and not x_adv.isnan().any() and not torch.equal(x_adv, x)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    if spec.norm == "linf":  # in this form: (x + eps) - x may exceed eps
        assert (x - eps <= x_adv).all() and (x_adv <= x + eps).all()
    else:
        lengths = (x_adv.double() - x.double()).flatten(1).norm(p=float(spec.norm[1:]), dim=1)
        assert lengths.max() <= eps * (1 + 1e-6)


def test_the_seed_decides_and_the_images_alone_give_the_accuracy(network):
    spec = find_attack("pgd5")
    first, again = (attack_all(network, spec, 0.14, skip=False) for _ in range(2))
    other = attack_all(replace(network, seed=4), spec, 0.14, skip=False)
    assert torch.equal(first.x_adv, again.x_adv) and not torch.equal(first.x_adv, other.x_adv)
    fresh = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    fresh.load_state_dict(network.classifier.module.state_dict())
    with torch.no_grad():
        shown = fresh.double().eval()(first.x_adv.double()).argmax(1) == network.labels
        clean = fresh(network.images.double()).argmax(1) == network.labels
    assert torch.equal(first.robust, shown & clean)


def test_random_starts_are_the_same_bits_in_any_batch(network):
    start = replace(find_attack("pgd5"), steps=0)
    whole = attack_all(network, start, 0.1, skip=False).x_adv
    assert not torch.equal(whole, network.images)
    for size in (1, 7, 64):
        assert torch.equal(attack_all(replace(network, batch_size=size), start, 0.1, skip=False).x_adv, whole)
    some = replace(network, samples=torch.tensor([90, 3, 41]))
    assert torch.equal(attack_all(some, start, 0.1, skip=False).x_adv, whole[[90, 3, 41]])


def test_a_linear_model_in_float64_is_attacked_bit_by_bit_in_any_batch(linear):
    subject, _ = linear
    weight = subject.classifier.module.weight.detach().double()

    def logits(x):
        score = ((x.double() - 0.5) * weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)

    subject = replace(subject, classifier=Classifier(subject.classifier.module, logits))
    for name in ("pgd5", "pgd5_l2", "cw5"):
        whole = attack_all(subject, find_attack(name), 0.02, skip=False).x_adv
        for size in (1, 7):
            parts = attack_all(replace(subject, batch_size=size), find_attack(name), 0.02, skip=False)
            assert torch.equal(parts.x_adv, whole)


@pytest.mark.parametrize("loss", ["pgd", "cw"])
def test_more_steps_never_help_the_model(network, loss):
    before = network.correct(network.images)
    for steps in (0, 1, 2, 3, 5, 8, 13, 21, 34):
        spec = replace(find_attack(f"{loss}20"), steps=steps, relative_step=0.5)
        after = attack_all(network, spec, 0.14, skip=False).robust
        assert not (after & ~before).any()
        before = after
    assert 0 < before.sum() < 60


def test_an_iterate_that_fools_the_model_is_kept_though_another_has_more_loss(make_subject):
    """One pixel: at 0.5 class 0 is right, at 0.6 another narrowly wins, at 0.7 two others narrowly lose."""

    def logits(x):
        p = x.flatten()
        one, two = torch.where(p < 0.65, 0.5 + 5.1 * (p - 0.5), 0.999), torch.where(p < 0.65, -3.0, 0.999)
        return torch.stack([torch.ones_like(p), one, two], 1)

    def loss(p):
        return float(nn.functional.cross_entropy(logits(torch.tensor(p).view(1, 1, 1, 1)), torch.tensor([0])))

    assert loss(0.5) < loss(0.6) < loss(0.7)
    image, label = torch.full((1, 1, 1, 1), 5, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    subject = make_subject(nn.Identity(), image, label, 3)
    subject = replace(
        subject,
        classifier=Classifier(subject.classifier.module, logits),
        test=replace(subject.test, max_value=10),
    )
    outcome = attack_all(subject, replace(find_attack("pgd2"), random_start=False), 0.2)
    assert not outcome.robust.any() and outcome.x_adv.item() == pytest.approx(0.6)


def test_everything_falls_at_eps_1(network):
    spec = replace(find_attack("pgd50"), relative_step=2.5 / 50)
    assert not attack_all(network, spec, 1.0).robust.any()
    assert not robust(network, "cw", 1.0).any()


def test_a_gradient_that_leads_away_does_not_raise_the_loss(network, monkeypatch):
    monkeypatch.setattr(sanity, "available", lambda: False)  # Square takes 5000 queries an image
    logits = network.classifier.logits
    away = replace(network, classifier=replace(network.classifier, logits=lambda x: logits(2 * x.detach() - x)))
    checks = {check.flag: check.found for check in thorough_checks(away, "l2", 0.3)}
    assert checks["loss_does_not_rise"] is True


@needs_library
def test_the_stronger_attack_is_the_lower_number(network):
    few = replace(network, samples=torch.arange(30))
    counts = [int(robust(few, name, 0.15).sum()) for name in ("fgsm", "pgd20", "pgd100", "autoattack")]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] > 0


@needs_library
def test_the_headline_does_not_depend_on_the_scale_of_logits(network):
    few = replace(network, samples=torch.arange(25))
    logits, found = few.classifier.logits, {}
    for scale in (1e-3, 1.0, 1e3):
        scaled = replace(few, classifier=replace(few.classifier, logits=lambda x, c=scale: c * logits(x)))
        rows = robustness(scaled, [find_attack(name) for name in ("apgd_ce", "apgd_t")], [0.12])
        found[scale] = {row["attack"]: row["accuracy"] for row in rows}
    assert found[1.0][HEADLINE] == found[1e-3][HEADLINE] == found[1e3][HEADLINE]
    assert found[1e3]["apgd_ce"] > found[1.0]["apgd_ce"]  # the cross-entropy alone is fooled


def test_what_was_measured_is_not_measured_again(network):
    specs = [find_attack(name) for name in ("fgsm", "pgd2")]
    rows = list(robustness(network, specs, [0.1, 0.2]))
    there = {(row["attack"], row["eps"]) for row in rows if (row["attack"], row["eps"]) != ("pgd", 0.2)}
    left = list(robustness(network, specs, [0.1, 0.2], lambda key: (key.get("attack"), key.get("eps")) in there))
    assert len(rows) == 5 and [{**row, "seconds": 0} for row in left] == [{**rows[-1], "seconds": 0}]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_honest_model_is_ever_flagged(seed, make_subject):
    subject = make_subject(*honest(seed))
    other = replace(make_subject(*honest(seed)), seed=9)
    norm, eps = [("linf", 0.06), ("l2", 0.4), ("linf", 0.1)][seed % 3]
    checks = [*quick_checks(subject), *thorough_checks(subject, norm, eps, [other])]
    assert [check for check in checks if check.found] == []


def honest(seed):
    """A network of its own kind on its own data: clean or adversarial training, narrow or wide, smooth or not."""
    generator = torch.Generator().manual_seed(seed)
    classes, side = 4 + seed % 3, 6
    centres = torch.rand(classes, 1, side, side, generator=generator)
    labels = torch.arange(200) % classes
    noise = (0.2 + 0.05 * (seed % 5)) * torch.randn(200, 1, side, side, generator=generator)
    images = ((centres[labels] + noise).clamp(0, 1) * 255).to(torch.uint8)
    width = 4 * (1 + seed % 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bend = [nn.ReLU(), nn.Softplus(), nn.GELU(), nn.Tanh()][seed % 4]
        middle = [nn.BatchNorm2d(width)] if seed % 3 else []
        module = nn.Sequential(nn.Conv2d(1, width, 3), *middle, bend, nn.Flatten(), nn.Linear(16 * width, classes))
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(30 + 10 * (seed % 6)):
            x = (images / 255).requires_grad_()
            if seed % 2:
                (grad,) = torch.autograd.grad(nn.functional.cross_entropy(module(x), labels), x)
                x = (x + 0.05 * grad.sign()).clamp(0, 1)
            adam.zero_grad()
            nn.functional.cross_entropy(module(x.detach()), labels).backward()
            adam.step()
    return module.eval(), images, labels, classes
