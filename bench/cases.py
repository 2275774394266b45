"""What is timed: one dataclass per family of operators, with its inputs and its work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

SIGMOID_BIAS = -10.0  # what sigmoid_loss has by default
RULES = ("threshold", "labels", "cuts", "topk")
THRESHOLD = 0.5
CUTS = (0.45, 0.55)
"""Of the first row and of the last one; as the threshold between the cosines of a class and those of others."""
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Inputs(NamedTuple):
    """Tensors of one case; ``leaves`` get gradients, ``upstream`` is the fixed gradient of the output.

    ``labels``: the class of each image; of the rule "cuts" a cosine for each row.
    """

    leaves: tuple[Tensor, ...]
    labels: Tensor | None = None
    upstream: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A contrastive loss, ``reduction="mean"``, forward and backward, normalisation included.

    ``rows`` anchors of width ``dim`` against ``columns`` candidates (0 = as many). ``classes`` clusters the data, so
    that rows of a cluster have a cosine near 0.8 and others near 0: sup_con's labels, or what ``rule`` cancels. A rule
    of ``RULES`` cancels negatives of ``nt_xent``: above ``THRESHOLD``, of the same class, above a given cut of the row,
    or the ``topk`` most similar ones, which are those of the class.
    """

    op: str
    rows: int
    dim: int = 128
    dtype: str = "fp32"
    columns: int = 0
    temperature: float = 0.5
    classes: int = 0
    rule: str = ""

    part: ClassVar[str] = "loss"
    modes: ClassVar[tuple[str, ...]] = ("forward", "backward", "full")

    @property
    def name(self) -> str:
        size = f"n{self.rows}" if not self.columns else f"n{self.rows}x{self.columns}"
        rule = f"-c{self.classes}" * bool(self.classes) + f"-{self.rule}" * bool(self.rule)
        return f"{size}-d{self.dim}-t{self.temperature:g}{rule}-{self.dtype}"

    @property
    def topk(self) -> int:
        """Negatives of a row that are of its class, where classes are of one size."""
        return self.rows // self.classes - 2

    @property
    def alone(self) -> bool:
        """Whether the rows meet each other, not a second set."""
        return self.op in ("nt_xent", "sup_con")

    @property
    def pairs(self) -> int:
        """Entries of the similarity matrix."""
        return self.rows * (self.columns or self.rows)

    def flops(self, mode: str) -> float:
        """Of the matrix products that eager PyTorch cannot avoid: one forward, two backward."""
        return {"forward": 2.0, "backward": 4.0, "full": 6.0}[mode] * self.pairs * self.dim

    def bytes(self, mode: str) -> float:
        """Least traffic: inputs read once a direction, gradients written once."""
        rows = self.rows if self.alone else self.rows + (self.columns or self.rows)
        return {"forward": 1.0, "backward": 2.0, "full": 3.0}[mode] * rows * self.dim * DTYPES[self.dtype].itemsize

    def shrunk(self) -> Loss:
        """The same code on next to no data: what loads libraries before memory is measured."""
        return replace(self, rows=16, columns=32 if self.columns else 0)

    def features(self) -> dict[str, str]:
        """What ``dispatch.resolve`` is asked beside device and dtype."""
        return {}

    def inputs(self, device: str, seed: int, dtype: str | None = None) -> Inputs:
        """Views with a cosine of 0.5 to the other view of their image (0.9 in clusters), of very different norms."""
        draw = torch.Generator().manual_seed(seed)
        views = 2 if self.op == "nt_xent" else 1
        images = max(self.rows, self.columns) // views
        image = torch.randn(images, self.dim, generator=draw)
        labels = None
        if self.classes:
            labels = torch.arange(images) % self.classes
            image = image + 3.0 * torch.randn(self.classes, self.dim, generator=draw)[labels]

        def view(count: int) -> Tensor:
            noisy = image[:count] + torch.randn(count, self.dim, generator=draw)
            return noisy * (0.5 + 1.5 * torch.rand(count, 1, generator=draw))

        sets = [torch.cat([view(images) for _ in range(views)])] if self.alone else []
        sets = sets or [view(self.rows), view(self.columns or self.rows)]
        if self.rule == "cuts":
            labels = torch.linspace(*CUTS, self.rows)
        upstream = 0.5 + torch.rand((), generator=draw)
        # Rounded to the case's dtype first: a contender in another dtype sees the same numbers.
        leaves = [x.to(DTYPES[self.dtype]).to(device, DTYPES[dtype or self.dtype]).requires_grad_() for x in sets]
        return Inputs(tuple(leaves), None if labels is None else labels.to(device), upstream.to(device))


@dataclass(frozen=True)
class Similarity:
    """``similarity``, forward and backward, or ``similarity_topk`` of ``k``."""

    op: str
    rows: int
    columns: int
    dim: int = 128
    dtype: str = "fp32"
    k: int = 0
    temperature: float = 0.1

    part: ClassVar[str] = "similarity"

    @property
    def modes(self) -> tuple[str, ...]:
        return ("full",) if self.k else ("forward", "backward", "full")

    @property
    def name(self) -> str:
        return f"n{self.rows}x{self.columns}-d{self.dim}{f'-k{self.k}' if self.k else ''}-{self.dtype}"

    @property
    def pairs(self) -> int:
        return self.rows * self.columns

    def flops(self, mode: str) -> float:
        products = 2.0 if self.k else {"forward": 2.0, "backward": 4.0, "full": 6.0}[mode]
        return products * self.pairs * self.dim

    def bytes(self, mode: str) -> float:
        size, rows = DTYPES[self.dtype].itemsize, (self.rows + self.columns) * self.dim
        if self.k:
            return rows * size + self.rows * self.k * (size + 8.0)
        forward, backward = (rows + self.pairs) * size, (2 * rows + self.pairs) * size
        return float({"forward": forward, "backward": backward, "full": forward + backward}[mode])

    def shrunk(self) -> Similarity:
        return replace(self, rows=16, columns=max(32, self.k))

    def features(self) -> dict[str, str]:
        return {}

    def inputs(self, device: str, seed: int, dtype: str | None = None) -> Inputs:
        draw = torch.Generator().manual_seed(seed)
        sets = [torch.randn(count, self.dim, generator=draw) for count in (self.rows, self.columns)]
        upstream = None if self.k else torch.randn(self.rows, self.columns, generator=draw)
        kind, rounded = DTYPES[dtype or self.dtype], DTYPES[self.dtype]
        leaves = tuple(x.to(rounded).to(device, kind).requires_grad_(not self.k) for x in sets)
        return Inputs(leaves, None, None if upstream is None else upstream.to(rounded).to(device, kind))


@dataclass(frozen=True)
class Perturb:
    """One call of ``pgd_step_``, ``project_`` or ``random_start_`` on a batch of images."""

    op: str
    shape: tuple[int, ...]
    norm: str = "linf"
    dtype: str = "fp32"

    part: ClassVar[str] = "perturb"
    modes: ClassVar[tuple[str, ...]] = ("full",)

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.norm}-{self.dtype}"

    @property
    def eps(self) -> float:
        return {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}[self.norm]

    @property
    def step_size(self) -> float:
        return self.eps / 4

    @property
    def moving(self) -> int:
        """Coordinates that an l1 step moves, of the default sparsity."""
        return max(1, int(0.01 * prod(self.shape[1:]) + 0.5))

    @property
    def reads(self) -> int:
        """Images read for each one written."""
        return {"pgd_step_": 3, "project_": 2, "random_start_": 1}[self.op]

    @property
    def pairs(self) -> int:
        return 0

    def flops(self, mode: str) -> float:
        return 0.0

    def bytes(self, mode: str) -> float:
        return (self.reads + 1.0) * prod(self.shape) * DTYPES[self.dtype].itemsize

    def shrunk(self) -> Perturb:
        return replace(self, shape=(2, *self.shape[1:]))

    def features(self) -> dict[str, str]:
        return {"norm": self.norm}

    def inputs(self, device: str, seed: int, dtype: str | None = None) -> Inputs:
        """(x_adv, grad, x): x_adv near the surface of the ball, so that steps are projected."""
        draw = torch.Generator().manual_seed(seed)
        x = torch.rand(self.shape, generator=draw)
        if self.op == "random_start_":
            x = 0.25 + 0.5 * x  # no bound cuts the ball, so that its distribution can be checked
        grad, delta = torch.randn(self.shape, generator=draw), torch.randn(self.shape, generator=draw)
        flat = delta.flatten(1)
        size = torch.linalg.vector_norm(flat, {"linf": torch.inf, "l2": 2, "l1": 1}[self.norm], dim=1)
        reach = 2.0 if self.op == "project_" else 1.0
        x_adv = x + delta * (reach * self.eps / size).reshape(-1, *[1] * (x.ndim - 1))
        if self.op == "pgd_step_":
            x_adv = x_adv.clamp(0, 1)
        return Inputs(tuple(v.to(DTYPES[self.dtype]).to(device, DTYPES[dtype or self.dtype]) for v in (x_adv, grad, x)))


Case = Loss | Similarity | Perturb
