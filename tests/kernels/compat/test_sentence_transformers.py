"""The ranking loss against loops over its formula, and against sentence-transformers itself where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from clead_kernels.compat.sentence_transformers import MultipleNegativesRankingLoss

pytestmark = pytest.mark.kernels

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
DIRECTIONS = {
    "plain": {},
    "symmetric": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    "symmetric, one softmax": {"directions": ("query_to_doc", "doc_to_query")},
    "with anchors": {"directions": ("query_to_doc", "query_to_query")},
    "all": {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
}


def loop(anchors, *documents, scale=20.0, cos=True, directions=("query_to_doc",), partition_mode="joint"):
    if cos:
        anchors, *documents = (F.normalize(x, dim=1) for x in (anchors, *documents))
    n, losses = len(anchors), []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        competitors = {
            "query_to_doc": [(anchors[i], x[j]) for x in documents for j in range(n)],
            "query_to_query": [(anchors[i], anchors[j]) for j in others],
            "doc_to_query": [(documents[0][i], anchors[j]) for j in range(n)],
            "doc_to_doc": [(documents[0][i], x[j]) for x in documents for j in others],
        }
        positive = scale * (anchors[i] * documents[0][i]).sum()
        logits = [torch.stack([scale * (x * y).sum() for x, y in competitors[name]]) for name in directions]
        if partition_mode == "joint":
            logits = [torch.cat(logits)]
        losses.append(sum(s.logsumexp(0) for s in logits) / len(logits) - positive)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions(randn, agrees, name, negatives, dtype):
    rows = [randn(4, 6, seed=seed) for seed in range(2 + negatives)]
    options = DIRECTIONS[name]
    agrees(MultipleNegativesRankingLoss(**options), lambda *x: loop(*x, **options), *rows, dtype=dtype)


def test_inner_products(randn, agrees):
    ours = MultipleNegativesRankingLoss(scale=0.5, similarity="dot")
    agrees(ours, lambda *x: loop(*x, scale=0.5, cos=False), *(randn(4, 6, seed=seed) for seed in range(3)))


def test_a_learnable_scale_gets_its_gradient(randn, agrees):
    agrees(
        lambda x, y, scale: MultipleNegativesRankingLoss(scale)(x, y),
        lambda x, y, scale: loop(x, y, scale=scale),
        randn(4, 6),
        randn(4, 6, seed=1),
        torch.tensor(5.0),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be positive and finite, got 0.0"),
        ({"scale": "20"}, TypeError, "scale must be a float or a tensor, got str"),
        ({"similarity": "l2"}, ValueError, "similarity must be one of 'cos', 'dot', got 'l2'"),
        ({"directions": ("doc_to_query",)}, ValueError, "directions must have 'query_to_doc'"),
        ({"directions": ("query_to_doc", "up")}, ValueError, "directions must be one of .* got 'up'"),
        ({"directions": ("query_to_doc", "doc_to_doc")}, NotImplementedError, "'doc_to_doc' but without"),
        ({"hardness_mode": "hard_negatives"}, NotImplementedError, "hardness_mode must be None.* 'hard_negatives'"),
        (
            {"directions": ("query_to_doc", "query_to_query"), "partition_mode": "per_direction"},
            ValueError,
            "partition_mode='per_direction' is for",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MultipleNegativesRankingLoss(**arguments)


def test_wrong_shapes(randn):
    with pytest.raises(ValueError, match=r"negatives must have the shape of anchors, \[4, 6\], got \[3, 6\]"):
        MultipleNegativesRankingLoss()(randn(4, 6), randn(4, 6), randn(3, 6))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_library_agrees(randn, agrees, name):
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("no sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    theirs = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), **DIRECTIONS[name])
    ours = MultipleNegativesRankingLoss(**DIRECTIONS[name])
    rows = [randn(4, 6, seed=seed) for seed in range(4)]
    agrees(ours, lambda *x: theirs.compute_loss_from_embeddings(list(x), None), *rows)
