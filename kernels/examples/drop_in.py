"""The losses of other libraries, with their own signatures: change the import, keep the call.

Runs without the libraries; where pytorch-metric-learning is installed, its numbers and times stand beside ours.
"""

import time
from importlib.util import find_spec

import torch
from torch.nn.functional import normalize

from clead_kernels.compat.lightly import NTXentLoss as LightlyNTXent
from clead_kernels.compat.open_clip import ClipLoss
from clead_kernels.compat.pytorch_metric_learning import NTXentLoss, SupConLoss
from clead_kernels.compat.sentence_transformers import MultipleNegativesRankingLoss
from clead_kernels.compat.supcontrast import SupConLoss as SupContrast

torch.manual_seed(0)
a, b = torch.randn(128, 64), torch.randn(128, 64)
labels = torch.arange(128) // 4


def milliseconds(loss, *arguments):
    """The loss, and the time of its forward and backward pass: the best of five."""
    best, rows = float("inf"), arguments[0].clone().requires_grad_()
    for _ in range(5):
        start = time.perf_counter()
        value = loss(rows, *arguments[1:])
        value.backward()
        best = min(best, time.perf_counter() - start)
    return f"{value.item():.4f} ({1000 * best:.1f} ms)"


logit_scale = torch.tensor(14.0, requires_grad=True)
ClipLoss()(normalize(a), normalize(b), logit_scale).backward()
print("open_clip ClipLoss:", milliseconds(ClipLoss(), normalize(a), normalize(b), 14.0))
print(f"    gradient of logit_scale: {logit_scale.grad.item():.6f}")
print("lightly NTXentLoss:", milliseconds(LightlyNTXent(0.1), a, b))
print("    with a memory bank:", milliseconds(LightlyNTXent(0.1, memory_bank_size=(4096, 64)), a, b))
print("sentence-transformers MultipleNegativesRankingLoss:", milliseconds(MultipleNegativesRankingLoss(), a, b))
print("SupContrast SupConLoss:", milliseconds(SupContrast(), normalize(torch.stack([a, b], 1), dim=-1), labels))
for ours in (SupConLoss(temperature=0.1), NTXentLoss(temperature=0.1)):
    name = type(ours).__name__
    print(f"pytorch-metric-learning {name}:", milliseconds(ours, a, labels))
    if find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning import losses

        print("    the library itself:", milliseconds(getattr(losses, name)(temperature=0.1), a, labels))
