"""pytorch-metric-learning's losses against loops over pairs, and against the library itself where it is installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clead_kernels.compat import pytorch_metric_learning as ours

pytestmark = pytest.mark.kernels

LABELS = {
    "a lonely one": torch.tensor([0, 0, 1, 1, 1, 2]),
    "two views": torch.tensor([0, 1, 2, 0, 1, 2]),
    "no positives": torch.arange(6),
    "no negatives": torch.zeros(6, dtype=torch.int64),
}
REF_LABELS = torch.tensor([1, 0, 2, 1, 7, 0, 0])
NAMES = ["SupConLoss", "NTXentLoss"]
TEMPERATURE = {"SupConLoss": 0.1, "NTXentLoss": 0.07}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def loop(name, x, labels, ref=None, ref_labels=None, *, normalize=True, itself=None, temperature=None):
    """``itself``: the column that is row i, and no pair; without ``ref`` that is i."""
    if ref is None:
        ref, ref_labels, itself = x, labels, list(range(len(x)))
    a, b = (F.normalize(x, dim=1), F.normalize(ref, dim=1)) if normalize else (x, ref)
    s = a @ b.t() / (temperature or TEMPERATURE[name])
    losses, positive_pairs, negative_pairs = [], 0, 0
    for i in range(len(x)):
        columns = [j for j in range(len(ref)) if itself is None or j != itself[i]]
        positives = [j for j in columns if ref_labels[j] == labels[i]]
        negatives = [j for j in columns if j not in positives]
        positive_pairs, negative_pairs = positive_pairs + len(positives), negative_pairs + len(negatives)
        if name == "NTXentLoss":
            losses += [s[i, [p, *negatives]].logsumexp(0) - s[i, p] for p in positives]
        elif positives:
            losses.append(s[i, columns].logsumexp(0) - s[i, positives].mean())
    return torch.stack(losses).mean() if positive_pairs and negative_pairs else 0.0 * x.sum() + 0.0 * ref.sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_meet_each_other(randn, agrees, name, labels, dtype):
    labels, loss = LABELS[labels], getattr(ours, name)()
    agrees(lambda x: loss(x, labels), lambda x: loop(name, x, labels), randn(6, 5), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_meet_another_set(randn, agrees, name, dtype):
    labels, loss = LABELS["a lonely one"], getattr(ours, name)()
    agrees(
        lambda x, ref: loss(x, labels, ref_emb=ref, ref_labels=REF_LABELS),
        lambda x, ref: loop(name, x, labels, ref, REF_LABELS),
        randn(6, 5),
        randn(7, 5),
        dtype=dtype,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_learnable_temperature_gets_its_gradient(randn, agrees, name):
    labels = LABELS["a lonely one"]
    agrees(
        lambda x, t: getattr(ours, name)(t)(x, labels),
        lambda x, t: loop(name, x, labels, temperature=t),
        randn(6, 5),
        torch.tensor(0.4),
    )


@pytest.mark.parametrize("labels", ["two views", "a lonely one"])
def test_the_native_kernels_take_any_number_of_positives(randn, labels):
    pytest.importorskip("clead_kernels._C", reason="no native kernels")
    x = randn(6, 5)
    fused, plain = (ours.NTXentLoss(impl=impl)(x, LABELS[labels]) for impl in ("native", "reference"))
    torch.testing.assert_close(fused, plain)


def complete(labels, ref_labels):
    """Every pair but (i, i), as (anchors, positives, anchors, negatives)."""
    keep = ~torch.eye(len(labels), len(ref_labels), dtype=torch.bool)
    same = labels[:, None] == ref_labels[None, :]
    return (*torch.where(same & keep), *torch.where(~same & keep))


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_all_pairs_says_which_column_is_the_row_itself(randn, agrees, name):
    labels = LABELS["a lonely one"]
    ref_labels, loss = torch.cat([labels, REF_LABELS]), getattr(ours, name)()
    pairs = complete(labels, ref_labels)
    agrees(
        lambda x, ref: loss(x, labels, pairs, ref, ref_labels),
        lambda x, ref: loop(name, x, labels, ref, ref_labels, itself=list(range(6))),
        randn(6, 5),
        randn(13, 5),
    )


LISTS = {
    "a triplet": lambda a1, p, a2, n: (a1, p, n[: len(a1)]),
    "too short": lambda a1, p, a2, n: (a1[1:], p[1:], a2, n),
    "a pair twice": lambda a1, p, a2, n: (a1, p, torch.cat([a2[:1], a2[:-1]]), torch.cat([n[:1], n[:-1]])),
    "a column exchanged": lambda a1, p, a2, n: (a1, p, a2, torch.cat([n[1:2], n[1:]])),
    "a sum as if a positive were missing": lambda a1, p, a2, n: (a1, p, a2, torch.cat([n[:1], n[:1], n[2:]])),
    "less a negative": lambda a1, p, a2, n: (torch.cat([a1[:1], a1]), torch.cat([a1[:1], p]), a2[1:], n[1:]),
    "other labels": lambda a1, p, a2, n: (a1, p, a2, n.flip(0)),
}


@pytest.mark.parametrize("name", LISTS)
def test_other_lists_of_pairs_are_refused(randn, name):
    labels = LABELS["a lonely one"]
    pairs = LISTS[name](*complete(labels, labels))
    with pytest.raises(NotImplementedError, match="indices_tuple must hold all 6 x 6 pairs of the labels"):
        ours.SupConLoss()(randn(6, 5), labels, pairs)


def test_the_order_of_the_list_is_free(randn, agrees):
    labels, loss = LABELS["a lonely one"], ours.SupConLoss()
    pairs = tuple(x.flip(0) for x in complete(labels, labels))
    agrees(lambda x: loss(x, labels, pairs), lambda x: loop("SupConLoss", x, labels), randn(6, 5))


@pytest.mark.parametrize(
    ("build", "call", "error", "message"),
    [
        ({"reducer": torch.nn.Identity()}, {}, NotImplementedError, "reducer is not supported, .* got Identity"),
        ({"distance": torch.nn.Identity()}, {}, NotImplementedError, "distance must be None, CosineSim.* got Identity"),
        ({}, {"labels": None}, NotImplementedError, "labels must be given"),
        ({}, {"ref_emb": torch.ones(2, 5)}, ValueError, "ref_emb needs ref_labels, got None"),
        ({}, {"labels": torch.arange(4)}, ValueError, r"labels must have shape \[6\], got \[4\]"),
    ],
)
def test_wrong_arguments(randn, build, call, error, message):
    with pytest.raises(error, match=message):
        ours.NTXentLoss(**build)(randn(6, 5), **{"labels": torch.arange(6), **call})


@pytest.fixture
def theirs():
    return pytest.importorskip("pytorch_metric_learning.losses")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_the_library_agrees(randn, agrees, theirs, name, labels):
    labels, loss, truth = LABELS[labels], getattr(ours, name)(), getattr(theirs, name)()
    agrees(lambda x: loss(x, labels), lambda x: truth(x, labels), randn(6, 5))
    sets = {"ref_labels": REF_LABELS}
    agrees(
        lambda x, ref: loss(x, labels, ref_emb=ref, **sets),
        lambda x, ref: truth(x, labels, ref_emb=ref, **sets),
        randn(6, 5),
        randn(7, 5),
    )
    # The same tensor of labels for both sets means that row i is column i.
    sets = {"ref_labels": labels}
    agrees(
        lambda x, ref: loss(x, labels, ref_emb=ref, **sets),
        lambda x, ref: truth(x, labels, ref_emb=ref, **sets),
        randn(6, 5),
        randn(6, 5, seed=1),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_library_agrees_that_one_pair_of_each_kind_is_no_loss(randn, agrees, theirs, name):
    sets = {"labels": torch.tensor([1]), "ref_labels": torch.tensor([1, 2])}
    agrees(
        lambda x, ref: getattr(ours, name)()(x, ref_emb=ref, **sets),
        lambda x, ref: getattr(theirs, name)()(x, ref_emb=ref, **sets),
        randn(1, 5),
        randn(2, 5),
    )


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_library_agrees_on_inner_products(randn, agrees, theirs, name, normalized):
    from pytorch_metric_learning.distances import DotProductSimilarity

    labels, distance = LABELS["a lonely one"], DotProductSimilarity(normalize_embeddings=normalized)
    loss, truth = (getattr(module, name)(temperature=1.0, distance=distance) for module in (ours, theirs))
    agrees(lambda x: loss(x, labels), lambda x: truth(x, labels), randn(6, 5))


@pytest.mark.parametrize("size", [6, 9, 16])
@pytest.mark.parametrize("name", NAMES)
def test_inside_the_librarys_memory(randn, agrees, theirs, name, size):
    """The queue fills, wraps around and, with size 6, holds nothing but the batch."""
    loss, truth = (theirs.CrossBatchMemory(getattr(module, name)(), 5, size).double() for module in (ours, theirs))
    for step in range(5):
        labels = torch.tensor([0, 0, 1, 1, 1, 2]).roll(step) % (2 + step % 2)
        agrees(lambda x, y=labels: loss(x, y), lambda x, y=labels: truth(x, y), randn(6, 5, seed=step))
    mask = torch.arange(6) % 2 == 0
    agrees(
        lambda x: loss(x, labels, enqueue_mask=mask), lambda x: truth(x, labels, enqueue_mask=mask), randn(6, 5, seed=9)
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_inside_the_librarys_self_supervision(randn, agrees, theirs, name, symmetric):
    loss, truth = (theirs.SelfSupervisedLoss(getattr(module, name)(), symmetric) for module in (ours, theirs))
    agrees(loss, truth, randn(6, 5), randn(6, 5, seed=1))


def test_pairs_of_the_librarys_miners_are_refused(randn, theirs):
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    x, labels = randn(6, 5), LABELS["a lonely one"]
    with pytest.raises(NotImplementedError, match="indices_tuple must hold all"):
        ours.SupConLoss()(x, labels, MultiSimilarityMiner(epsilon=0.0)(x, labels))
