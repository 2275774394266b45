"""Loops over threads: the same bits from 1 to 8 of them, wherever the scheduler puts and interrupts them.

``./.ci/sanitize thread`` runs this file with ThreadSanitizer, which sees the races that happen to do no harm.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import clead_kernels as kernels
from clead_kernels import FalseNegatives, _native

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _native.available(), reason="the extension is not built"),
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be moved here"),
]
NATIVE = {"reduction": "none", "impl": "native"}
GROUPS = torch.arange(400) % 7
RULE = FalseNegatives(threshold=0.2, labels=GROUPS, treatment="attract")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "symmetric": lambda a, b: kernels.nt_xent(a, **NATIVE),
    "both ways": lambda a, b: kernels.clip_loss(a, b, **NATIVE),
    "two sides": lambda a, b: kernels.info_nce(a, b, hard_negative_beta=0.5, **NATIVE),
    "grouped": lambda a, b: kernels.sup_con(a, GROUPS, denominator="own_positive", **NATIVE),
    "attracted": lambda a, b: kernels.sup_con(a, GROUPS, false_negatives=RULE, **NATIVE),
    "spread": lambda a, b: kernels.info_nce(a, b, spread=1.0, **NATIVE),
    "top k": lambda a, b: kernels.info_nce(a, b, false_negatives=FalseNegatives(topk=3), **NATIVE),
    "euclidean": lambda a, b: kernels.info_nce(a, b, metric="euclidean", **NATIVE),
    "sigmoid": lambda a, b: kernels.sigmoid_loss(a, b, **NATIVE),
    "margin": lambda a, b: kernels.instance_margin(a, b, impl="native"),
    "similarity": lambda a, b: kernels.similarity(a, b, impl="native"),
}


def images_of(a: Tensor, norm: str) -> list[Tensor]:
    """Start, step with momentum and projection of images made from ``a``."""
    x, options = a.sigmoid().view(50, 2, -1), {"eps": 0.3, "norm": norm, "impl": "native"}
    start = kernels.random_start_(torch.empty_like(x), x, seed=1, **options)
    buffer = torch.zeros_like(x)
    step = kernels.pgd_step_(start.clone(), x - 0.4, x, step_size=0.2, momentum_buffer=buffer, momentum=0.9, **options)
    return [start, step, buffer, kernels.project_(x + 1, x, **options)]


def everything(name: str, a: Tensor, b: Tensor) -> list[Tensor]:
    if name in ("linf", "l2", "l1"):
        return images_of(a, name)
    if name == "convolution":
        wide = torch.float64 if a.dtype == torch.float64 else torch.float32
        leaves = [a.to(wide).view(6, 16, 10, 10).repeat(20, 1, 1, 1), b.to(wide).flatten()[:6912].view(48, 16, 3, 3)]
        out = kernels.conv3x3(*(leaf.requires_grad_() for leaf in leaves), impl="native")
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]
    if name == "nearest":
        bank = torch.cat([a, b]).repeat(17, 1)  # many threads' worth of it, full of ties
        return list(kernels.similarity_topk(a[:40], bank, k=20, impl="native"))
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    rows = LOSSES[name](a, b)
    return [rows, *(x for x in torch.autograd.grad(rows.sum(), (a, b), allow_unused=True) if x is not None)]


@pytest.fixture
def moved():
    """Puts every thread of this process onto cores chosen anew; in the end all may be anywhere again."""
    cores, before = sorted(os.sched_getaffinity(0)), torch.get_num_threads()
    choices, generator = [[core] for core in cores] + [cores], random.Random(0)

    def place(choices):
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # gone since
                os.sched_setaffinity(int(task), generator.choice(choices))

    yield lambda: place(choices)
    place([cores])
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*LOSSES, "nearest", "convolution", "linf", "l2", "l1"])
def test_no_bit_depends_on_the_number_or_the_order_of_threads(name, dtype, randn, moved):
    a, b = (randn(400, 24, dtype=dtype, seed=seed) for seed in (1, 2))
    torch.set_num_threads(1)
    expected = everything(name, a, b)
    for threads in (2, 3, 5, 8):
        torch.set_num_threads(threads)
        moved()
        got = everything(name, a, b)
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True)), f"{threads} threads"
