"""Transfer between models, the label-free attack, and the paired test behind the flags."""

from dataclasses import replace
from math import comb

import pytest
import torch
import torch.nn.functional as F

from clead.errors import UserError
from clead.protocols.catalogue import find_attack
from clead.protocols.paired import beats, sign_test
from clead.protocols.robustness import attack_all
from clead.protocols.subject import Classifier
from clead.protocols.transfer import Transfer

PGD = find_attack("pgd20")


def named(subject, name, **changes):
    return replace(subject, name=name, key={**subject.key, "run": name}, **changes)


def through(subject, function):
    """The same weights behind ``function`` of the images."""
    classifier = subject.classifier
    return replace(classifier, logits=lambda x: classifier.logits(function(x)))


def test_rows_are_targets_and_the_diagonal_is_the_white_box(network):
    other = named(network, "other", seed=9)
    transfer = Transfer([network, other], PGD)
    rows = {(row["run"], row["attack"]): row for one in (network, other) for row in transfer.rows(one, 0.15)}
    assert set(rows) == {(target, f"transfer:{source}") for target in ("r", "other") for source in ("r", "other")}
    white = attack_all(network, PGD, 0.15).robust.double().mean()
    assert rows["r", "transfer:r"]["accuracy"] == pytest.approx(float(white))
    assert rows["other", "transfer:r"]["accuracy"] == rows["r", "transfer:r"]["accuracy"]  # the same weights
    assert all(row["flags"] == [] for row in rows.values())


def test_a_source_that_beats_a_masked_target_is_flagged(network):
    masked = named(network, "masked", classifier=through(network, lambda x: (x * 15).round() / 15))
    rows = {row["attack"]: row for row in Transfer([network, masked], PGD).rows(masked, 0.15)}
    assert rows["transfer:masked"]["accuracy"] > rows["transfer:r"]["accuracy"] + 0.2
    assert rows["transfer:r"]["flags"] == ["transfer_beats_white_box"] and rows["transfer:masked"]["flags"] == []


def test_a_target_that_the_margin_breaks_is_not_flagged_though_its_cross_entropy_says_nothing(network):
    logits = network.classifier.logits
    saturated = named(network, "saturated", classifier=replace(network.classifier, logits=lambda x: 1e4 * logits(x)))
    rows = {row["attack"]: row for row in Transfer([network, saturated], PGD).rows(saturated, 0.15)}
    assert rows["transfer:saturated"]["accuracy"] > rows["transfer:r"]["accuracy"] + 0.2
    assert rows["transfer:r"]["flags"] == []


def test_models_of_other_images_and_attacks_that_leave_images_alone_are_errors(network, linear):
    with pytest.raises(UserError, match="transfer needs models of the same test images: r and r differ"):
        Transfer([network, linear[0]], PGD)
    with pytest.raises(UserError, match="transfer needs an attack that moves every image"):
        Transfer([network], find_attack("apgd_ce"))


def test_the_contrastive_attack_raises_the_contrastive_loss_without_labels(network):
    module = network.classifier.module
    classifier = Classifier(module, module, {"features": module[:4]}, 0.2)
    subject = replace(network, classifier=classifier)
    relabelled = replace(subject, test=replace(subject.test, labels=(subject.test.labels + 1) % 5))
    spec = find_attack("contrastive20")
    x_adv = attack_all(subject, spec, 0.1).x_adv
    assert torch.equal(x_adv, attack_all(relabelled, spec, 0.1).x_adv)

    def loss(z):
        with torch.no_grad():
            anchors, encoded = (F.normalize(module[:4](images).double(), dim=1) for images in (network.images, z))
        return F.cross_entropy(anchors @ encoded.T / 0.2, torch.arange(len(z)))

    noise = torch.rand(x_adv.shape, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    assert loss(x_adv) > loss((network.images + noise).clamp(0, 1)) + 0.1
    with pytest.raises(UserError, match="needs a model with an encoder"):
        attack_all(network, spec, 0.1)


def test_the_sign_test_counts_coins():
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(7, 2) == pytest.approx(sum(comb(9, k) for k in (7, 8, 9)) / 2**9)
    assert 0 < sign_test(3000, 2000) < 1e-40


@pytest.mark.parametrize(
    ("wins", "losses", "size", "expected"),
    [
        (7, 0, 100, True),  # p = 1/128
        (6, 0, 100, False),  # p = 1/64
        (7, 0, 701, False),  # below one point
        (20, 20, 100, False),
        (0, 9, 100, False),
    ],
)
def test_a_win_must_be_significant_and_a_point(wins, losses, size, expected):
    champion = torch.ones(size, dtype=torch.bool)
    champion[:losses] = False
    challenger = torch.ones(size, dtype=torch.bool)
    challenger[losses : losses + wins] = False
    assert beats(challenger, champion) is expected
