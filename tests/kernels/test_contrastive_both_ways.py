"""``clip_loss`` natively: both directions from one pass over the pairs, against softmax cross-entropies in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clead_kernels import FalseNegatives, _native, clip_loss

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}"),
]
BOUND = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def truth(a, b, temperature, normalize):
    """The losses of all rows, the mean of both directions."""
    rows = [F.normalize(x, dim=1) if normalize else x for x in (a, b)]
    logits, own = rows[0] @ rows[1].T / temperature, torch.arange(len(a))
    return (F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")) / 2


def differentiate(loss, a, b, leaves):
    a, b = (x.detach().clone().requires_grad_(name in leaves) for name, x in (("a", a), ("b", b)))
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad="t" in leaves)
    rows = loss(a, b, temperature)
    wanted = [x for x in (a, b, temperature) if x.requires_grad]
    return [rows.detach(), *torch.autograd.grad(rows, wanted, torch.linspace(0.5, 1.5, len(a), dtype=rows.dtype))]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("leaves", ["abt", "a", "b", "t", "bt"])
@pytest.mark.parametrize("normalize", [True, False])
def test_both_directions_and_gradients(randn, relative_error, dtype, leaves, normalize):
    for rows, width in ((2, 3), (97, 40), (230, 16)):  # less than a block, one row more, several
        a, b = (randn(rows, width, dtype=dtype, seed=seed) for seed in (1, 2))
        if not normalize:
            a, b = a / width, b / width
        ours = differentiate(
            lambda a, b, t: clip_loss(a, b, temperature=t, normalize=normalize, reduction="none"), a, b, leaves
        )
        exact = differentiate(lambda a, b, t: truth(a, b, t, normalize), a.double(), b.double(), leaves)
        assert all(map(lambda x, y: relative_error(x, y) < BOUND[dtype], ours, exact)), (rows, width)


def test_a_row_that_is_not_a_number_shows_in_its_own_direction_alone(randn):
    a, b = randn(120, 8, seed=1), randn(120, 8, seed=2)
    a[3] = torch.nan
    temperature = torch.ones(())
    rows = torch.ops.clead.contrastive(a, b, temperature, 1.0, True, "native", *both_ways())[0]
    assert rows[:120].isnan().nonzero().flatten().tolist() == [3] and rows[120:].isnan().all()


def both_ways():
    from clead_kernels.contrastive.form import Form
    from clead_kernels.contrastive.pairs import Pairs

    return *Pairs(positive_offset=0, both_ways=True), *Form()


class Calls(TorchDispatchMode):
    """Counts the forward calls of the contrastive op."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.clead.contrastive.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"weights": torch.rand(6), "denominator": "negatives", "reduction": "sum"}, 1),
        ({"grad_candidates": False}, 2),
        ({"false_negatives": FalseNegatives(threshold=0.5)}, 2),
        ({"impl": "reference"}, 2),
    ],
)
def test_one_pass_where_no_rule_and_no_constant_asks_for_two(randn, options, count):
    a, b = randn(6, 4, seed=1), randn(6, 4, seed=2)
    with Calls() as calls:
        clip_loss(a, b, **options)
    assert calls.count == count


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.5}, {"positive_offset": 1}, {"self_offset": 0}, {"topk": 2}, {"candidates": None}]
)
def test_the_op_refuses_other_pairs(randn, wrong):
    from clead_kernels.contrastive.form import Form
    from clead_kernels.contrastive.pairs import Pairs

    a, b = randn(6, 4, seed=1), wrong.get("candidates", randn(6, 4, seed=2))
    pairs = Pairs(positive_offset=0, both_ways=True)._replace(**{k: v for k, v in wrong.items() if k != "candidates"})
    with pytest.raises(RuntimeError, match="both_ways is for as many candidates as anchors"):
        torch.ops.clead.contrastive(a, b, None, 0.1, True, "native", *pairs, *Form())
