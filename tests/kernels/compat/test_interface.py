"""What all drop-ins promise: no matrix of pairs, whole graphs, rows as they come, a named implementation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clead_kernels import _native
from clead_kernels.compat import lightly, open_clip, pytorch_metric_learning, sentence_transformers, supcontrast
from clead_kernels.contrastive.native import STATISTICS

pytestmark = pytest.mark.kernels

N, D = 96, 4
LABELS = torch.arange(N) % 7
MASK = (torch.arange(N)[:, None] * torch.arange(N)[None, :] % 5 == 0).float()
RANKING = {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")}


def supcontrast_loss(**options):
    loss = supcontrast.SupConLoss(temperature=0.5, **options)
    return lambda x, y, *rest: loss(F.normalize(torch.stack([x, y], 1), dim=-1), *rest)


CASES = {
    "supcontrast, labels": lambda **o: lambda x, y: supcontrast_loss(**o)(x, y, LABELS),
    "supcontrast, one": lambda **o: supcontrast_loss(contrast_mode="one", **o),
    "supcontrast, mask": lambda **o: lambda x, y: supcontrast_loss(**o)(x, y, None, MASK),
    "metric learning, SupCon": lambda **o: (
        lambda x, y: pytorch_metric_learning.SupConLoss(**o)(x, LABELS, ref_emb=y, ref_labels=LABELS.flip(0))
    ),
    "metric learning, NTXent": lambda **o: (
        lambda x, y: pytorch_metric_learning.NTXentLoss(**o)(torch.cat([x, y]), torch.arange(N).repeat(2))
    ),
    "lightly": lambda **o: lightly.NTXentLoss(**o),
    "lightly, bank": lambda **o: lightly.NTXentLoss(memory_bank_size=(2 * N, D), **o),
    "open_clip": lambda **o: lambda x, y: open_clip.ClipLoss(**o)(x, y, 1.5),
    "sentence_transformers": lambda **o: sentence_transformers.MultipleNegativesRankingLoss(**RANKING, **o),
}


class Largest(TorchDispatchMode):
    """The most elements that a tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return made


@pytest.mark.skipif(not _native.available(), reason=f"no native kernels: {_native.why_absent()}")
@pytest.mark.parametrize("name", CASES)
def test_no_matrix_of_pairs_is_made(randn, name):
    """Not around the operator, which the mode sees, nor inside, since the native one is taken."""
    x, y = randn(N, D, grad=True), randn(N, D, seed=1, grad=True)
    loss, largest = CASES[name](impl="native"), Largest()
    with largest:
        loss(x, y).backward()
    # The mask of SupContrast is itself [N, N], for 2N rows, of which the operator keeps a few numbers each.
    assert largest.elements <= (N * N if "mask" in name else STATISTICS * 2 * N)
    with largest:
        x @ torch.cat([x, y]).t()
    assert largest.elements == 2 * N * N


@pytest.mark.parametrize("name", CASES)
def test_implementations_are_named_and_agree(randn, name):
    x, y = randn(N, D), randn(N, D, seed=1)
    torch.manual_seed(0)
    loss = CASES[name]()(x, y)
    torch.manual_seed(0)
    assert CASES[name](impl="reference")(x, y).item() == pytest.approx(loss.item(), rel=1e-12)
    with pytest.raises(NotImplementedError, match="impl='triton' cannot run"):
        CASES[name](impl="triton")(x, y)


@pytest.mark.parametrize("name", [name for name in CASES if name != "lightly, bank"])
def test_they_compile_to_one_graph(randn, name):
    torch.compiler.reset()
    x, y = randn(N, D, dtype=torch.float32), randn(N, D, dtype=torch.float32, seed=1)
    loss = CASES[name]()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert compiled(x, y).item() == pytest.approx(loss(x, y).item(), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_under_autocast_rows_are_taken_as_they_come(randn, name):
    x, y = randn(N, D, dtype=torch.float32), randn(N, D, dtype=torch.float32, seed=1)
    torch.manual_seed(0)
    loss = CASES[name]()(x, y)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert CASES[name]()(x, y).item() == pytest.approx(loss.item(), rel=1e-6)


def test_modules_can_be_copied_and_moved(randn):
    loss = lightly.NTXentLoss(memory_bank_size=(4, D))
    loss(randn(3, D, grad=True), randn(3, D))
    twin = copy.deepcopy(loss).double()
    assert twin.bank.dtype == torch.float64 and torch.equal(twin.bank.float(), loss.bank)
    assert torch.equal(twin(randn(3, D, seed=2), randn(3, D)), twin(randn(3, D, seed=2), randn(3, D)))
