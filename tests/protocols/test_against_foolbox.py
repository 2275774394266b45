"""FGSM and PGD beside foolbox's, on the test digits."""

import pytest
import torch
from torch import nn

from clead import data
from clead.protocols.catalogue import find_attack
from clead.protocols.robustness import attack_all
from clead.protocols.subject import Classifier, Subject

foolbox = pytest.importorskip("foolbox")


@pytest.fixture(scope="module")
def digits():
    splits = data.load("digits")
    x, y = splits.train.batch(torch.arange(len(splits.train))), splits.train.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(60):
            adam.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            adam.step()
    module.eval().requires_grad_(False)
    return Subject("digits", Classifier(module, module), splits.test, torch.arange(500), {"run": "digits"}, 0)


def theirs(subject, attack, eps):
    model = foolbox.PyTorchModel(subject.classifier.module, bounds=(0, 1), device="cpu")
    with torch.random.fork_rng():
        _, x_adv, _ = attack(model, subject.images, subject.labels, epsilons=eps)
    return x_adv


@pytest.mark.parametrize("eps", [0.05, 0.15])
def test_fgsm_is_foolboxs_sample_for_sample(digits, eps):
    outcome = attack_all(digits, find_attack("fgsm"), eps, skip=False)
    x_adv = theirs(digits, foolbox.attacks.LinfFastGradientAttack(random_start=False), eps)
    torch.testing.assert_close(outcome.x_adv, x_adv, rtol=0, atol=1e-6)
    robust = digits.classifier.module(x_adv).argmax(1) == digits.labels
    assert torch.equal(outcome.robust, robust & digits.correct(digits.images))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7)])
def test_pgd_20_is_within_a_point_and_a_half_of_foolboxs(digits, norm, eps):
    spec = find_attack("pgd20", norm=norm)
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    x_adv = theirs(digits, kind(steps=20, rel_stepsize=spec.relative_step), eps)
    expected = float((digits.classifier.module(x_adv).argmax(1) == digits.labels).double().mean())
    ours = float(attack_all(digits, spec, eps).robust.double().mean())
    assert 0.05 < ours < 0.95 and abs(ours - expected) <= 0.015
