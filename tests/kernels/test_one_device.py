"""The references stay on the device of their arguments: "meta" is one that every machine has, and mixing it fails.

Their numbers, and gradients through the ops, are for other tests; here nothing is computed.
"""

from __future__ import annotations

import pytest
import torch

from clead_kernels.augment import reference as augmentation
from clead_kernels.augment.steps import NAMES, STEPS
from clead_kernels.contrastive import reference
from clead_kernels.contrastive.form import Form
from clead_kernels.contrastive.pairs import Pairs
from clead_kernels.perturb import reference as perturbation
from clead_kernels.perturb import reference_l1
from clead_kernels.similarity import reference as similarity

pytestmark = pytest.mark.kernels
ROWS, COLUMNS, WIDTH = 6, 8, 5


def rows(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def index(count, *more):
    return torch.empty(*more, count, dtype=torch.int64, device="meta")


def test_a_mixed_op_fails_here():
    with pytest.raises(RuntimeError, match="not on the expected device"):
        rows(4) + torch.arange(4)


def pairs(rule):
    of_rules = {
        "none": {},
        "threshold on the CPU": {"row_threshold": torch.tensor(0.5), "treatment": "weight", "weight": 0.3},
        "thresholds": {"row_threshold": rows(ROWS), "treatment": "attract"},
        "topk, labels": {"topk": 2, "clusters": index(ROWS, 2), "candidate_clusters": index(COLUMNS, 2)},
    }
    return Pairs(positive_index=index(ROWS), self_index=index(ROWS), **of_rules[rule])


FORMS = [
    Form(),
    Form("own_positive", "inside"),
    Form("negatives"),
    Form(spread=0.5),
    Form(debias=0.1),
    Form(metric="euclidean"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rule", ["none", "threshold on the CPU", "thresholds", "topk, labels"])
def test_contrastive(rule, form, dtype):
    a, b, temperature = rows(ROWS, WIDTH, dtype=dtype), rows(COLUMNS, WIDTH, dtype=dtype), torch.tensor(0.1)
    arguments = (a, b, temperature, form.metric == "cosine", pairs(rule), form)
    loss, count, statistics = reference.forward(*arguments)
    grads = reference.backward(rows(ROWS), statistics, *arguments, [True, True, True])
    assert {x.device.type for x in (loss, count, statistics, *grads)} == {"meta"}


@pytest.mark.parametrize("normalize", [True, False])
def test_similarity(normalize):
    a, b = rows(ROWS, WIDTH), rows(COLUMNS, WIDTH)
    arguments = (a, b, torch.tensor(0.1), normalize)
    grads = similarity.backward(rows(ROWS, COLUMNS), *arguments, [True, True, True])
    found = (similarity.forward(*arguments), *grads, *similarity.topk(a, b, 3, normalize))
    assert {x.device.type for x in found} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_perturbations(dtype):
    x, ids = rows(4, 3, 5, 5, dtype=dtype), index(4)
    bounds, wide = (0.0, 1.0), torch.float64 if dtype == torch.float64 else torch.float32
    found = [perturbation.accumulate(x, x, 0.9), perturbation.pixels(rows(2, dtype=torch.uint8), dtype)]
    for eps in (0.1, rows(4, 1, 1, 1, dtype=wide)):
        found += [perturbation.pgd_step_linf(x, x, x, eps, eps, *bounds, False)]
        found += [perturbation.pgd_step_l2(x, x, x, eps, eps, *bounds, True)]
        found += [reference_l1.pgd_step_l1(x, x, x, eps, eps, eps, *bounds, False)]
        found += [f(x, x, eps, *bounds) for f in (perturbation.project_linf, perturbation.project_l2)]
        found += [reference_l1.project_l1(x, x, eps, *bounds), reference_l1.random_start_l1(x, eps, 1, ids, 2, *bounds)]
        found += [f(x, eps, 1, ids, 2, *bounds) for f in (perturbation.random_start_linf, perturbation.random_start_l2)]
    assert {y.device.type for y in found} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_augmentation(name):
    images = rows(4, 3, 8, 8, dtype=torch.uint8)
    found = augmentation.augment(images, rows(len(STEPS[name]), 4), [NAMES.index(name)], 255.0, True)
    assert found.device.type == "meta"
