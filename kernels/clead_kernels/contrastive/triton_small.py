"""The contrastive family on Triton for few rows: one launch forward, reduction included, and one backward.

Where pairs are few, a launch, and what Python does for it, take longer than the work. So norms are made where they are
needed, the program that finishes last reduces the losses, and compiled kernels are kept by what they were compiled for
and launched without Triton's examination of every argument. ``small.serves`` says for which calls.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._triton_rows import on_device, padded_width, precision
from .pairs import Pairs
from .small import statistics_size
from .triton_arguments import SHARPEST
from .triton_small_backward import small_backward_kernel
from .triton_small_configs import FEW_ROWS, config
from .triton_small_forward import small_forward_kernel

_LOG2E = math.log2(math.e)
_SPARE = 1024  # counters set aside for streams and for calls in CUDA graphs
_KERNELS: dict[str, Any] = {"forward": small_forward_kernel, "backward": small_backward_kernel}


class Call(NamedTuple):
    """A call as both kernels take it.

    Attributes:
        tensors: anchors, candidates, temperature, groups or positives, the candidates' groups, thresholds, clusters,
            the candidates' clusters, weights of rows; contiguous, or None.
        numbers: sharpness, rows, columns, shift, threshold, its stride, weight of false negatives, share.
        plan: what is compiled in.
    """

    tensors: tuple[Tensor | None, ...]
    numbers: tuple[Any, ...]
    plan: Plan

    def arguments(self) -> tuple[Any, ...]:
        """What both kernels begin with."""
        a, b, temperature, marks, candidate_marks, cuts, clusters, candidate_clusters, _ = self.tensors
        sharpness, rows, columns, shift, threshold, stride, weight, _ = self.numbers
        return (
            a, b, sharpness if temperature is None else temperature, rows, columns, shift, marks, candidate_marks,
            threshold if cuts is None else cuts, stride, clusters, candidate_clusters, weight,
        )  # fmt: skip


class _Key(NamedTuple):
    """All that a compiled kernel depends on, as the constants of the kernels have it."""

    dtype: torch.dtype
    width: int
    few: bool
    temperature_given: bool
    normalize: bool
    bounded: bool
    sets: str
    itself: bool
    positives: str
    threshold: int
    all_rules: bool
    treatment: str
    reduction: str
    sum_positives: bool
    device: int
    alignment: int
    dtypes: tuple[torch.dtype | None, ...]


def prepare(
    anchors: Tensor,
    candidates: Tensor | None,
    temperature_tensor: Tensor | None,
    temperature: float,
    normalize: bool,
    reduction: str,
    sum_positives: bool,
    weights: Tensor | None,
    mirrored: bool,
    pairs: Pairs,
) -> Call:
    """A call that ``small.serves``; arguments as of the op."""
    a = anchors.contiguous()
    b = a if candidates is None else candidates.contiguous()
    (rows, width), columns = a.shape, b.shape[0]
    marks, candidate_marks, shift = pairs.groups, pairs.candidate_groups, max(pairs.images, 0)
    if marks is not None:
        positives = "groups"
        candidate_marks = marks if candidate_marks is None else candidate_marks
    elif pairs.positive_index is not None:
        positives, marks = "index", pairs.positive_index
    else:
        positives = "place" if 2 * shift in (0, rows) else "views"
    cuts = pairs.row_threshold
    kind = 2 if cuts is not None else 0 if pairs.threshold is None else 1
    treatment = "none"
    if kind or pairs.clusters is not None:
        treatment = "eliminate" if pairs.treatment == "weight" and pairs.weight == 0.0 else pairs.treatment
    optional = (
        temperature_tensor, marks, candidate_marks, None if cuts is None else cuts.to(a.device), pairs.clusters,
        pairs.candidate_clusters, weights,
    )  # fmt: skip
    given = temperature_tensor is not None
    sharpness = 0.0 if given else _LOG2E / temperature
    key = _Key(
        a.dtype, width, rows <= FEW_ROWS, given, normalize, normalize and not given and sharpness <= SHARPEST,
        "one" if candidates is None else "mirrored" if mirrored else "two", pairs.self_offset == 0, positives, kind,
        pairs.all_rules, treatment, reduction, sum_positives, a.get_device(), (a.data_ptr() | b.data_ptr()) % 16,
        tuple([None if x is None else x.dtype for x in optional]),
    )  # fmt: skip
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = Plan(key)
    threshold = 0.0 if pairs.threshold is None else float(pairs.threshold)
    stride = cuts.stride(0) if cuts is not None and cuts.ndim else 0
    share = (0.5 if mirrored else 1.0) / (rows if reduction == "mean" else 1)
    numbers = (sharpness, rows, columns, shift, threshold, stride, pairs.weight, share)
    return Call((a, b, *[None if x is None else x.contiguous() for x in optional]), numbers, plan)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Loss, [M] for the reduction "none" and else 0-d, and what ``backward`` needs of every row."""
    plan, arguments, share = call.plan, call.arguments(), call.numbers[-1]
    a, rows, columns = arguments[0], arguments[3], arguments[4]
    each = plan.key.reduction == "none"
    loss = a.new_empty(rows if each else (), dtype=torch.float32)
    statistics = a.new_empty(statistics_size(rows, columns), dtype=torch.float32)
    with on_device(a):
        counter = None if each else _counter(a)
        blocks = -(-rows // plan.block_m["forward"]) * (2 if plan.key.sets == "mirrored" else 1)
        plan.launch("forward", (*arguments, call.tensors[-1], share, loss, statistics, counter), blocks)
    return loss, statistics


def backward(
    call: Call, grad_loss: Tensor, statistics: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients w.r.t. anchors, candidates and temperature; None where ``needs`` says no."""
    plan, arguments, share = call.plan, call.arguments(), call.numbers[-1]
    a, b, temperature, rows, columns = arguments[:5]
    grad_anchors = torch.empty_like(a) if needs[0] else None
    grad_candidates = torch.empty_like(b) if needs[1] else None
    grad_temperature = torch.empty_like(temperature) if needs[2] else None
    block_m = plan.block_m["backward"]
    blocks = needs[0] * -(-rows // block_m) + needs[1] * -(-columns // block_m) + needs[2]
    if blocks:
        stride = grad_loss.stride(0) if grad_loss.ndim else 0
        grads = (grad_anchors, grad_candidates, grad_temperature)
        with on_device(a):
            plan.launch("backward", (*arguments, share, grad_loss, stride, statistics, *grads), blocks, needs)
    return grad_anchors, grad_candidates, grad_temperature


class Plan:
    """Compile-time constants, and the kernels compiled with them."""

    def __init__(self, key: _Key) -> None:
        self.key = key
        masks = "plain" if key.bounded and key.treatment == "none" else "rules"
        self._shapes = {name: config(name, masks, key.width, key.dtype, key.few) for name in _KERNELS}
        self.block_m = {name: shape.block_m for name, shape in self._shapes.items()}
        self._flags: dict[str, Any] = {
            "D": key.width,
            "BLOCK_D": padded_width(key.width),
            "ON_DEVICE": key.temperature_given,
            "NORMALIZE": key.normalize,
            "UNIT": key.normalize and key.dtype == torch.float32,
            "BOUNDED": key.bounded,
            "SELF": key.itself,
            "POSITIVES": key.positives,
            "MULTIPLE": key.positives in ("groups", "views") or key.treatment == "attract",
            "THRESHOLD": key.threshold,
            "ALL_RULES": key.all_rules,
            "TREATMENT": key.treatment,
            "REDUCTION": key.reduction,
            "SETS": key.sets,
            "PRECISION": precision(key.dtype),
            "SLOPE": key.temperature_given,
            "SUM_POSITIVES": key.sum_positives,
        }
        self._compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def launch(self, name: str, arguments: tuple[Any, ...], blocks: int, present: tuple[bool, ...] = ()) -> None:
        """Run a kernel on so many programs. ``present`` says which of the arguments that may be None are not."""
        ready = self._compiled.get((name, present))
        if ready is not None:
            compiled, constants = ready
            compiled[blocks, 1, 1](*arguments, *constants)
            return
        kernel, shape = _KERNELS[name], self._shapes[name]
        tile = {"BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n}
        flags = self._flags | tile | {"BLOCK_K": min(shape.block_k, self._flags["BLOCK_D"])}
        constants = tuple(flags[flag] for flag in kernel.arg_names if flag.isupper())
        compiled = kernel[(blocks,)](*arguments, *constants, num_warps=shape.warps, num_stages=shape.stages)
        if compiled is not None:  # the interpreter keeps nothing
            self._compiled[name, present] = compiled, constants


_plans: dict[_Key, Plan] = {}
_counters: dict[tuple[int, int], Tensor] = {}
_spare: dict[int, list[Tensor]] = {}


def _counter(a: Tensor) -> Tensor:
    """An int32 0 on the device that no other kernel uses while this one runs: every kernel leaves it at 0.

    One per stream; and one of its own for every call in a CUDA graph, which may run beside anything later.
    """
    index, stream = a.get_device(), 0
    if a.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            spare = _spare.get(index)
            return spare.pop() if spare else a.new_zeros((), dtype=torch.int32)
        stream = torch.cuda.current_stream(index).cuda_stream
    counter = _counters.get((index, stream))
    if counter is None:
        if not _spare.get(index):
            _spare[index] = _zeros(a)
        counter = _counters[index, stream] = _spare[index].pop()
    return counter


def _zeros(a: Tensor) -> list[Tensor]:
    """Many int32 0 on the device, for any stream.

    Made in a thread of their own: while a compiler warms up for CUDA graphs, what this one allocates is in a pool whose
    memory it takes back afterwards.
    """

    def make() -> list[Tensor]:
        zeros = torch.zeros(_SPARE, dtype=torch.int32, device=a.device)
        if a.is_cuda:
            torch.cuda.current_stream(a.device).synchronize()
        return list(zeros.unbind())

    with ThreadPoolExecutor(1) as alone:
        return alone.submit(make).result()
