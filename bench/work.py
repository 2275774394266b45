"""A contender set up on a case: the stages that are timed, and what happens untimed before each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Inputs, Perturb, Similarity
from .contenders import Contender
from .timing import Replayed


@dataclass
class Work:
    """``stages`` are called in order, once a sample; ``reset`` before them drops what the last sample left.

    ``built`` is what the contender made for the case.
    """

    stages: list[Callable[[], object]]
    reset: Callable[[], None]
    output: dict[str, Any] = field(default_factory=dict)
    built: Any = None

    def once(self) -> None:
        """One sample, untimed."""
        self.reset()
        for stage in self.stages:
            stage()


def prepare(contender: Contender, case: Case, inputs: Inputs) -> Work:
    """Set up ``contender`` on these inputs.

    Raises:
        Unavailable: it cannot run the case.
    """
    return _prepare(contender, contender.build(case, inputs), case, inputs)


def replayed(work: Work, contender: Contender, case: Case, inputs: Inputs, copies: int) -> Replayed:
    """``work`` on ``copies`` of its inputs, as CUDA graphs; not built again, since building may be compiling."""
    works = []
    for _ in range(copies):
        leaves = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs.leaves)
        other = inputs._replace(leaves=leaves)
        built = contender.build(case, other) if contender.kind == "line" else work.built
        works.append(_prepare(contender, built, case, other))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for each in works:
            each.once()
            each.reset()
        _refuse_waiting(works[0])
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails leaves its own as the current one
        return Replayed(works)


def _refuse_waiting(work: Work) -> None:
    """Raise where ``work`` waits for the device: torch 2.11 does not recover from a capture that fails by that."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work.once()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        work.reset()


def _in_tf32(stage: Callable[[], object]) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        stage()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _prepare(contender: Contender, built: Any, case: Case, inputs: Inputs) -> Work:
    work = _of_kind(contender, built, case, inputs)
    work.built = built
    if contender.tf32:
        work.stages = [partial(_in_tf32, stage) for stage in work.stages]
    return work


def _of_kind(contender: Contender, built: Any, case: Case, inputs: Inputs) -> Work:
    if contender.kind == "line":
        return Work(built, lambda: None)
    if isinstance(case, Perturb):
        return _in_place(built, inputs)
    if isinstance(case, Similarity) and case.k:
        return _plain(built, inputs)
    if isinstance(case, Similarity):
        return _differentiated(built, inputs, inputs.upstream)
    return _differentiated(partial(built, reduction="mean"), inputs, inputs.upstream)


def _differentiated(function: Callable[..., Tensor], inputs: Inputs, upstream: Tensor | None) -> Work:
    output: dict[str, Any] = {}
    cast: dict[torch.dtype, Tensor | None] = {}  # filled in the warm-up: no cast is timed

    def forward() -> None:
        output["value"] = function(*inputs.leaves)

    def backward() -> None:
        value = output["value"]
        if value.dtype not in cast:
            cast[value.dtype] = None if upstream is None else upstream.to(value.dtype)
        output["grads"] = torch.autograd.grad(value, inputs.leaves, cast[value.dtype])

    return Work([forward, backward], output.clear, output)


def _plain(function: Callable[..., Any], inputs: Inputs) -> Work:
    output: dict[str, Any] = {}

    def call() -> None:
        output["value"] = function(*inputs.leaves)

    return Work([call], output.clear, output)


def _in_place(function: Callable[..., Tensor], inputs: Inputs) -> Work:
    start, grad, x = inputs.leaves
    x_adv = start.clone()
    output: dict[str, Any] = {}

    def reset() -> None:
        output.clear()
        x_adv.copy_(start)

    def call() -> None:
        output["value"] = function(x_adv, grad, x)

    return Work([call], reset, output)
