"""Calls of every family, as tests of kernels on trial make them: name to (op, call of small tensors of a dtype)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import clead_kernels
from clead_kernels import FalseNegatives

Made = dict[str, Tensor]


def tensors(dtype: torch.dtype, device: str = "cpu", rows: int = 24) -> Made:
    """Embeddings that require grad, images and what moves them, float64 parameters of an augmentation."""
    draw = torch.Generator().manual_seed(5)
    made = {name: torch.randn(rows, 20, generator=draw) for name in ("a", "b")}
    made |= {name: torch.rand(3, 3, 8, 8, generator=draw) for name in ("image", "x_adv")}
    made |= {"grad": torch.randn(3, 3, 8, 8, generator=draw), "buffer": torch.zeros(3, 3, 8, 8)}
    made = {name: x.to(device, dtype) for name, x in made.items()}
    boxes = torch.tensor([[0.0, 1, 2], [2, 0, 1], [6, 7, 5], [5, 8, 6]], dtype=torch.float64, device=device)
    made |= {"resized_crop": boxes, "flip": boxes[:1] % 2}
    return made | {name: made[name].requires_grad_() for name in ("a", "b")}


def _augmented(made: Made) -> Tensor:
    return clead_kernels.augment(made["image"], [(name, made[name]) for name in ("resized_crop", "flip")])


def _labels(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device) % 5


CASES: dict[str, tuple[str, Callable[[Made], object]]] = {
    "nt_xent": ("nt_xent", lambda t: clead_kernels.nt_xent(t["a"])),
    "rows of info_nce": ("info_nce", lambda t: clead_kernels.info_nce(t["a"], t["b"], reduction="none")),
    "clip_loss": ("clip_loss", lambda t: clead_kernels.clip_loss(t["a"], t["b"])),
    "sup_con": ("sup_con", lambda t: clead_kernels.sup_con(t["a"], _labels(t["a"]))),
    "inside": ("sup_con", lambda t: clead_kernels.sup_con(t["a"], _labels(t["a"]), positives_reduction="inside")),
    "threshold": ("nt_xent", lambda t: clead_kernels.nt_xent(t["a"], false_negatives=FalseNegatives(threshold=0.3))),
    "topk": ("nt_xent", lambda t: clead_kernels.nt_xent(t["a"], false_negatives=FalseNegatives(topk=3))),
    "instance_margin": ("instance_margin", lambda t: clead_kernels.instance_margin(t["a"], t["b"])),
    "similarity": ("similarity", lambda t: clead_kernels.similarity(t["a"], t["b"], temperature=0.1)),
    "similarity_topk": ("similarity_topk", lambda t: clead_kernels.similarity_topk(t["a"], t["b"], 5)),
    "augment": ("augment", _augmented),
    "project_": ("project_", lambda t: clead_kernels.project_(t["x_adv"], t["image"], eps=0.1, norm="l2")),
    "random_start_": ("random_start_", lambda t: clead_kernels.random_start_(t["x_adv"], t["image"], eps=0.1, seed=3)),
    **{
        f"pgd_step_ {norm}": (
            "pgd_step_",
            lambda t, norm=norm: clead_kernels.pgd_step_(
                t["x_adv"], t["grad"], t["image"], eps=0.1, step_size=0.05, norm=norm, momentum_buffer=t["buffer"]
            ),
        )
        for norm in ("linf", "l2", "l1")
    },
}
