"""Every argument of every public function, given what it cannot take: one sentence that names it."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import clead_kernels
from clead_kernels import FalseNegatives, Temperature

pytestmark = pytest.mark.kernels

A, B = torch.ones(6, 3), torch.ones(8, 3)
LABELS, MORE = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 2, 2, 1, 1])
X = torch.full((2, 3, 4, 4), 0.5)
W = torch.full((5, 3, 3, 3), 0.5)
META = torch.device("meta")
GOOD = {
    "info_nce": {"anchors": A, "candidates": B},
    "nt_xent": {"embeddings": A},
    "sup_con": {"embeddings": A, "labels": LABELS, "candidates": B, "candidate_labels": MORE},
    "clip_loss": {"a": A, "b": A},
    "instance_margin": {"anchors": A, "candidates": B},
    "sigmoid_loss": {"a": A, "b": B},
    "similarity": {"a": A, "b": B},
    "similarity_topk": {"queries": A, "bank": B, "k": 2},
    "cancelled": {
        "embeddings": A,
        "candidates": B,
        "labels": LABELS,
        "candidate_labels": MORE,
        "false_negatives": FalseNegatives(threshold=0.5),
    },
    "FalseNegatives": {"threshold": 0.5, "treatment": "weight"},
    "Temperature": {},
    "pgd_step_": {"x_adv": X, "grad": X, "x": X, "eps": 0.1, "step_size": 0.1, "norm": "l1"},
    "random_start_": {"x_adv": X, "x": X, "eps": 0.1, "seed": 1},
    "project_": {"x_adv": X, "x": X, "eps": 0.1},
    "explain": {},
    "conv3x3": {"x": X, "weight": W, "bias": W[:, 0, 0, 0]},
    "augment": {"images": X, "steps": [("flip", torch.zeros(1, 2, dtype=torch.float64))]},
}

NO_TENSOR = (None, 1.0, "x", [[1.0]], A.numpy())
STRANGE = (A.to_sparse(), torch.nested.nested_tensor([A, A], layout=torch.jagged))
ROWS = (
    *NO_TENSOR,
    *STRANGE,
    A[0],
    torch.tensor(1.0),
    A.long(),
    A.bool(),
    A.to(torch.complex64),
    A.to(torch.float8_e5m2),
)
ALIKE = (A.half(), A[:, :2], A.to(META))  # not like the other rows
NUMBERS = ("x", True, [0.1], 1j, math.nan, 10**400, torch.ones(2), torch.tensor(1), torch.tensor(0.1).to(META))
POSITIVE = (*NUMBERS, None, 0, -1.0, math.inf, torch.tensor(-1.0), torch.tensor(math.nan), A[0].to_sparse())
NOT_NEGATIVE = (*NUMBERS, None, -1.0, math.inf)
INTEGERS = ([0] * 6, "x", LABELS.float(), LABELS[:5], torch.tensor(1), LABELS.to(META), LABELS.bool())
INDICES = (*INTEGERS, LABELS[None], LABELS - 5, LABELS + 100, LABELS.to_sparse())
CHOICES = ("x", None, 1, ["mean"], torch.tensor(1.0))
FLAGS = (None, "x", 1, 0.5, torch.tensor(True))
COUNTS = (None, "x", 0, -1, 1.5, True, torch.tensor(2))
IMAGES = (*NO_TENSOR, X.to_sparse(), torch.tensor(1.0), X.long(), X.half(), X[:1], X.to(META), X.to(torch.complex64))
RADII = (None, "x", True, [0.1], 1j, -1.0, math.nan, torch.ones(3), torch.ones(2, 1), torch.tensor(1), -torch.ones(2))
RADII = (*RADII, torch.tensor(math.nan), torch.ones(2).to(META), torch.ones(2, 3, 4, 5), torch.ones(1, 1, 1, 1, 1))
WHOLE = (None, "x", -1, 2**64, 1.5, True, torch.tensor(3))
BAD = {
    **dict.fromkeys(("anchors", "embeddings", "a", "queries"), ROWS),
    **dict.fromkeys(("candidates", "b", "bank"), (*ROWS[1:], *ALIKE)),
    "temperature": (*POSITIVE, 1e-9, 1e19, torch.tensor(1e-9)),
    "bias": (*NUMBERS, None, math.inf),
    **dict.fromkeys(("spread", "debias", "hard_negative_beta", "weight"), NOT_NEGATIVE),
    "positives": INDICES,
    "self_index": INDICES,
    "labels": INTEGERS,
    "candidate_labels": (LABELS, *INTEGERS),
    "weights": (1.0, [1.0] * 6, "x", LABELS, A[:5, 0], A[:, :1], A[:, 0].to(META), A[:, 0].to(torch.complex64)),
    **dict.fromkeys(
        ("reduction", "impl", "denominator", "positives_reduction", "metric", "levels", "combine", "treatment", "norm"),
        CHOICES,
    ),
    **dict.fromkeys(("normalize", "grad_candidates", "targeted"), FLAGS),
    "false_negatives": (0.5, "x", {"threshold": 0.5}, FalseNegatives),
    "num_views": (*COUNTS, 5),
    "k": (*COUNTS, 9),
    "topk": COUNTS[1:],
    "threshold": ("x", True, [0.1], 1j, 2.0, -1.5, math.nan, 10**400, A, torch.tensor(1), torch.tensor(2.0)),
    "initial": NOT_NEGATIVE,
    "low": NOT_NEGATIVE,
    "high": (*NUMBERS[:-3], None, -1.0, math.inf),
    "x_adv": (*IMAGES, X[:1].expand(2, 3, 4, 4), X.clone().requires_grad_()),
    "grad": IMAGES,
    "x": IMAGES,
    "eps": RADII,
    "step_size": (*RADII, math.inf, torch.tensor(math.inf)),
    "l1_sparsity": (*RADII, 0.0, 1.5, torch.zeros(2)),
    "bounds": (1.0, (0,), (1, 0), (0, 1, 2), "ab", (math.nan, 1), (None, 1), ("a", "b"), (torch.zeros(2), 1.0)),
    "momentum_buffer": (*IMAGES[1:], X[:1].expand(2, 3, 4, 4), X.clone().requires_grad_()),
    "momentum": (None, "x", True, 1j, -1.0, math.nan, math.inf),
    "seed": WHOLE,
    "step": (*WHOLE, 2**32),
    "sample_ids": ("x", 1, [0, 1], LABELS, LABELS[:2].int(), LABELS[:2].float(), LABELS[:2].to(META)),
    "images": (*NO_TENSOR, X.to_sparse(), torch.tensor(1.0), X.long(), X[0], X.to(META), X.clone().requires_grad_()),
    "steps": (None, "x", 1, [], ["flip"], [("flip", None)], [("x", torch.zeros(1, 2))], [("flip", torch.zeros(1, 2))]),
    "max_value": (None, "x", True, 1j, 0, -1.0, math.nan, math.inf),
    "clip": FLAGS,
    "conv3x3.x": (*IMAGES[:-3], X.double(), X[0], X[:, :2], X[..., :0], *IMAGES[-2:]),
    "conv3x3.weight": (*NO_TENSOR, None, W.to_sparse(), W.long(), W[0], W[..., :2], W.to(torch.complex64)),
    "conv3x3.bias": (*NO_TENSOR[1:], W[:, 0, 0, 0].to_sparse(), A[0], W[:, 0, 0, :1], LABELS[:5], W[:, 0, 0, 0].half()),
    "augment.dtype": ("x", 1, torch.int8, torch.complex64),
    "op": ("x", 1),
    "device": ("x", 1.5),
    "dtype": ("x", 1, None),
}


def arguments():
    """All (function, argument) pairs, ``build_info`` aside; a new argument without bad values is an error here."""
    for name in sorted({*clead_kernels.__all__} - {"Impl", "Cancelled", "build_info"}):
        for argument in inspect.signature(getattr(clead_kernels, name)).parameters:
            yield name, argument


@pytest.mark.parametrize(("name", "argument"), list(arguments()))
def test_what_an_argument_cannot_take_is_named(name, argument):
    for value in BAD.get(f"{name}.{argument}", BAD[argument]):
        given = {key: x.clone() if key == "x_adv" else x for key, x in GOOD[name].items()} | {argument: value}
        if argument == "momentum":
            given["momentum_buffer"] = torch.zeros_like(X)
        if argument == "num_views":
            given.pop("candidates", None), given.pop("labels", None), given.pop("candidate_labels", None)
        with pytest.raises((ValueError, TypeError, NotImplementedError)) as caught:
            result = getattr(clead_kernels, name)(**given)
            if name == "FalseNegatives":  # its labels are checked against a batch
                clead_kernels.nt_xent(A, false_negatives=result)
        sentence = str(caught.value)
        assert argument in sentence or f"impl={value!r}" in sentence, f"{value!r}: {sentence}"
        assert "\n" not in sentence and len(sentence) < 600, f"{value!r}: {sentence}"


@pytest.mark.parametrize("name", GOOD)
def test_the_good_arguments_are_good(name):
    given = {key: x.clone() if key == "x_adv" else x for key, x in GOOD[name].items()}
    getattr(clead_kernels, name)(**given)


def test_numbers_that_are_taken():
    """What people pass besides floats."""
    numpy = pytest.importorskip("numpy")
    loss = clead_kernels.nt_xent(A, temperature=0.5)
    for temperature in (
        numpy.float64(0.5),
        numpy.float32(0.5),
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.float64),
        Temperature(0.5)(),
    ):
        assert clead_kernels.nt_xent(A, temperature=temperature).item() == pytest.approx(loss.item(), rel=1e-6)
    rule = FalseNegatives(threshold=numpy.float32(0.25), topk=numpy.int64(2))
    plain = FalseNegatives(threshold=0.25, topk=2)
    options = {"num_views": numpy.int32(2), "hard_negative_beta": numpy.float32(1)}
    given = clead_kernels.nt_xent(A, false_negatives=rule, **options)
    assert torch.equal(given, clead_kernels.nt_xent(A, false_negatives=plain, hard_negative_beta=1.0))
    nearest = [clead_kernels.similarity_topk(A, A, k)[1] for k in (numpy.int64(2), 2)]
    assert torch.equal(*nearest)
    assert clead_kernels.nt_xent(A, temperature=1).item() == clead_kernels.nt_xent(A, temperature=1.0).item()
    assert clead_kernels.nt_xent(
        A, false_negatives=FalseNegatives(topk=10**30, labels=LABELS, combine="and")
    ).isfinite()
    for eps in (numpy.float32(0.25), numpy.float64(0.25), 0.25, torch.tensor(0.25), torch.tensor([0.25, 0.25])):
        clead_kernels.project_(moved := X + 1, X, eps=eps, bounds=[-5, numpy.float64(5)])
        assert torch.equal(moved, X + 0.25)
    starts = [
        clead_kernels.random_start_(X.clone(), X, eps=0.1, seed=seed) for seed in (3, numpy.int64(3), numpy.uint64(3))
    ]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
