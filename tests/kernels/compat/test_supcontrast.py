"""SupContrast's loss against loops over its documented formula (it is no package that could be installed)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clead_kernels.compat.supcontrast import SupConLoss

pytestmark = pytest.mark.kernels

LABELS = torch.tensor([3, 1, 3, 8, 1])  # 8 is alone
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def loop(features, mask, *, temperature, base_temperature=0.07, mode="all"):
    """``mask[i][k]``: whether image k's views are positives of image i; all rows in view-major order."""
    images, views = features.shape[:2]
    rows = [(i, features[i, v].flatten()) for v in range(views) for i in range(images)]
    losses = []
    for a in range(len(rows) if mode == "all" else images):
        image, anchor = rows[a]
        others = [j for j in range(len(rows)) if j != a]
        s = {j: (anchor * rows[j][1]).sum() / temperature for j in others}
        log_sum = torch.stack(list(s.values())).logsumexp(0)
        weights = {j: float(mask[image][rows[j][0]]) for j in others}
        total = sum(weights.values())
        terms = [w * (s[j] - log_sum) for j, w in weights.items() if w]
        losses.append(-sum(terms) / total if terms else 0.0 * anchor.sum())
    return temperature / base_temperature * torch.stack(losses).mean()


def same(labels):
    return (labels[:, None] == labels[None, :]).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3, 5])
@pytest.mark.parametrize("labelled", [True, False])
def test_labels_and_views(randn, agrees, dtype, mode, views, labelled):
    features = F.normalize(randn(5, views, 6), dim=-1)
    ours = SupConLoss(temperature=0.2, contrast_mode=mode)
    mask = same(LABELS) if labelled else torch.eye(5)
    agrees(
        lambda x: ours(x, LABELS if labelled else None),
        lambda x: loop(x, mask, temperature=0.2, mode=mode),
        features,
        dtype=dtype,
    )


MASKS = {
    "labels": same(LABELS),
    "views": torch.eye(5),
    "asymmetric": torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]),
    "weighted": torch.linspace(0, 2, 25).reshape(5, 5),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_any_kind(randn, agrees, dtype, mode, views, name):
    mask = MASKS[name]
    ours = SupConLoss(temperature=0.3, contrast_mode=mode)
    agrees(
        lambda x: ours(x, mask=mask),
        lambda x: loop(x, mask.double(), temperature=0.3, mode=mode),
        F.normalize(randn(5, views, 6), dim=-1),
        dtype=dtype,
    )


def test_the_rows_are_not_normalised_and_the_base_temperature_scales(randn, agrees):
    ours = SupConLoss(temperature=2.0, base_temperature=0.5)
    truth = {"temperature": 2.0, "base_temperature": 0.5}
    agrees(lambda x: ours(x, LABELS), lambda x: loop(x, same(LABELS), **truth), 3 * randn(5, 2, 4))
    agrees(lambda x: ours(x, mask=MASKS["weighted"]), lambda x: loop(x, MASKS["weighted"], **truth), randn(5, 2, 4))


def test_further_dimensions_are_flattened(randn, agrees):
    ours = SupConLoss(temperature=1.0)
    agrees(lambda x: ours(x, LABELS), lambda x: loop(x, same(LABELS), temperature=1.0), 0.3 * randn(5, 2, 3, 2, 2))


@pytest.mark.parametrize("mask", [None, MASKS["asymmetric"]])
def test_a_learnable_temperature_gets_its_gradient(randn, agrees, mask):
    labels = LABELS if mask is None else None
    agrees(
        lambda x, t: SupConLoss(t)(x, labels, mask),
        lambda x, t: loop(x, same(LABELS) if mask is None else mask, temperature=t),
        randn(5, 2, 4),
        torch.tensor(0.7),
    )


def test_a_single_row_has_no_loss():
    for mask in (None, torch.ones(1, 1)):
        assert SupConLoss()(torch.ones(1, 1, 3), mask=mask).item() == 0.0


def test_labels_come_in_any_shape_and_on_the_cpu(randn):
    features = randn(5, 2, 4)
    assert torch.equal(SupConLoss()(features, LABELS[:, None]), SupConLoss()(features, LABELS))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": torch.ones(4, 3)}, ValueError, r"features must be a tensor \[images, views, ...\], got \[4, 3\]"),
        ({"labels": LABELS, "mask": torch.eye(5)}, ValueError, "expected one of them, got both"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \[5\], got \[3\]"),
        ({"labels": LABELS.double()}, TypeError, "labels must hold integers, got float64"),
        ({"mask": torch.eye(10)}, ValueError, r"mask must have shape \[5, 5\], got \[10, 10\]"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SupConLoss()(**{"features": torch.ones(5, 2, 3), **arguments})


def test_wrong_mode():
    with pytest.raises(ValueError, match="contrast_mode must be one of 'all', 'one', got 'two'"):
        SupConLoss(contrast_mode="two")
