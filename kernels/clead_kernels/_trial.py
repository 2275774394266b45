"""Kernels on trial: the first call of each kind runs on the reference too, and is believed where both agree.

What a compiler made of a kernel for one GPU is known on that GPU alone. So the rows of ``dispatch.SUPPORT`` that are on
trial are taken by ``impl="auto"`` after one call of the same kind, in the same process, whose results and gradients
were those of the reference; where they were not, or the kernel raised, one warning says so and the reference runs such
calls. A kind is the op, the implementation, the device, the dtype, what requires grad, and what else picks another
kernel; of sizes, which pick its tiles too, only a class. A trial computes on tensors of its own and leaves nothing but
its finding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _library

Run = Callable[..., Tensor | tuple[Tensor, ...]]


class Accuracy(NamedTuple):
    """How far right kernels may be from the reference.

    Attributes:
        allowed: the most a row may differ by, of its own or the usual length, by dtype of the result.
        share: of the rows that may differ by more.
    """

    allowed: dict[torch.dtype, float]
    share: float = 0.0


SUMS = Accuracy({torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1.6e-2, torch.float16: 4e-3})
"""Sums in another order, of products that round; half results are rounded, the weights of their sums too: 8 times."""
DECISIONS = Accuracy({dtype: 8 * allowed for dtype, allowed in SUMS.allowed.items()}, 1 / 64)
"""The same where numbers that round are compared: a pair at the edge may fall on either side."""
BITS = Accuracy({torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 5e-4})
"""The same bits, but for a few numbers that are rounded to the neighbour."""


class _Finding(NamedTuple):
    taken: str
    text: str


_findings: dict[tuple[Any, ...], _Finding] = {}


def choose(
    op: str,
    impl: str,
    kind: tuple[Any, ...],
    run: Run,
    first: Tensor,
    *others: Tensor | None,
    accuracy: Accuracy = SUMS,
    writes: bool = False,
    large: bool = False,
) -> str:
    """The implementation that runs a call for which ``impl`` is preferred and on trial.

    Args:
        op: public name.
        impl: what is on trial.
        kind: what picks another specialisation of the kernel, beside device, dtype and gradients.
        run: ``run(impl, first, *others)`` does the call with that implementation and returns its results.
        first: a tensor that the call differentiates or writes; it gives device and dtype.
        *others: more of them; None for one that is not given.
        accuracy: how far apart both may be.
        writes: whether the call writes these tensors.
        large: whether the matrices of the reference are too large: then the kernel is taken untried.

    Returns:
        ``impl`` or ``"reference"``. Where no trial is possible (compilers, modes, transforms, captured graphs, empty
        tensors), what earlier calls of the kind have found, or else the reference.
    """
    tensors, grads = (first, *others), torch.is_grad_enabled()
    needs = [None if x is None else grads and x.requires_grad for x in tensors]
    key = (op, impl, first.get_device(), first.dtype, *needs, *kind)
    finding = _compiled(key) if torch.compiler.is_compiling() else _findings.get(key)
    if finding is not None or large:
        return impl if finding is None else finding.taken
    if _library.watched(*tensors) or _blind(first) or not all(x is None or x.numel() for x in tensors):
        return "reference"
    finding = _try(impl, run, tensors, accuracy, writes)
    if _findings.setdefault(key, finding) is finding and finding.taken != impl:  # threads may have tried together
        shapes = ", ".join(str(list(x.shape)) for x in tensors if x is not None)
        warnings.warn(
            f"{op}: {impl} on {first.device}, with {first.dtype} {shapes}, {finding.text}. impl='auto' takes the "
            f"reference for such calls in this process; choose by hand with impl='reference' or impl={impl!r}",
            RuntimeWarning,
            stacklevel=2,
        )
    return finding.taken


def large(rows: int, columns: int) -> bool:
    """Whether one float32 matrix of so many pairs, of which the reference holds several, is above 1 GiB."""
    return 4 * rows * columns > 2**30


def size(n: int) -> int:
    """Another number for sizes that kernels have other tiles for; comparisons alone, which a compiler can guard."""
    if n <= 64:
        return 0
    if n <= 512:
        return 1
    if n <= 2048:
        return 2
    if n <= 4096:
        return 3
    if n <= 32768:
        return 4
    return 5 if n <= 2**21 else 6


def width(n: int) -> int:
    """The next width that kernels have whole blocks of, negative where the last block of ``n`` is not whole."""
    for whole in (64, 128, 256, 512):
        if n <= whole:
            return whole if n == whole else -whole
    return 0


def report(op: str, impl: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether ``impl`` is still a choice, and what was found in this process; empty for nothing."""
    found = [
        finding
        for (name, tried, index, of, *_), finding in list(_findings.items())
        if (name, tried, of) == (op, impl, dtype) and device.index in (None, index)
    ]
    if not found:
        return True, ""
    right = sum(finding.taken == impl for finding in found)
    texts = [f"taken for {right} of {len(found)} kinds of calls that were tried"]
    return right > 0, "; ".join([*texts, *dict.fromkeys(f"one {f.text}" for f in found if f.text)])


def _compiled(key: tuple[Any, ...]) -> _Finding | None:
    """What is known when code is compiled, without a guard on what is found later."""
    return _findings.get(key)


# What torch.compiler.assume_constant_result does after it has imported the compiler, which takes a second.
_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _blind(x: Tensor) -> bool:
    """Whether nothing can be looked at: launches are only written down, or nobody may wait for the device."""
    if torch._C._get_tracing_state() is not None:
        return True
    return x.is_cuda and (torch.cuda.is_current_stream_capturing() or torch.cuda.get_sync_debug_mode() > 1)


def _try(impl: str, run: Run, tensors: Sequence[Tensor | None], accuracy: Accuracy, writes: bool) -> _Finding:
    try:
        expected = _results("reference", run, tensors, writes)
    except torch.OutOfMemoryError:
        return _Finding(impl, "was not tried, since the reference ran out of memory")
    try:
        found = _results(impl, run, tensors, writes)
        excess, error = _compare(found, expected, accuracy)
        if excess > 1 and not writes:  # float64 tells how much of it is rounding, of the reference too
            truth = _results("reference", run, tensors, writes, exact=True)
            excess, error = _compare(found, truth, accuracy)
            excess /= max(1.0, 4 * _compare(expected, truth, accuracy)[0])
    except torch.OutOfMemoryError:
        return _Finding(impl, "was not tried, since both together ran out of memory")
    except Exception as problem:
        return _Finding("reference", f"raised {type(problem).__name__} ({str(problem).partition(chr(10))[0]})")
    if excess <= 1:
        return _Finding(impl, "")
    text = f"differs from the reference by {error:.1e} of its size, {excess:.1e} times what rounding explains"
    return _Finding("reference", text)


def _results(
    impl: str, run: Run, tensors: Sequence[Tensor | None], writes: bool, exact: bool = False
) -> list[tuple[Tensor, Tensor | float]]:
    """What the call returns and the gradients it gives, each with the least length of a row to compare it with."""
    grads = torch.is_grad_enabled()
    # Activation checkpointing counts what is saved while its own hooks are on top.
    hooks = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None
    with torch.autograd.graph.saved_tensors_hooks(_itself, _itself) if hooks else nullcontext():
        inputs: list[Tensor | None] = [None if x is None else _own(x, writes, exact) for x in tensors]
        for x, given in zip(inputs, tensors, strict=True):
            if x is not None and given is not None and grads and not writes:
                x.requires_grad_(given.requires_grad)
        outputs = run(impl, *inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        results: list[tuple[Tensor, Tensor | float]] = [(out.detach(), 0.0) for out in outputs]
        if not outputs[0].requires_grad:
            return results
        out = outputs[0]
        weights = (1.5 + torch.arange(out.numel(), device=out.device).cos()).view(out.shape).to(out.dtype)
        wanted = [x for x in inputs if x is not None and x.requires_grad]
        total = (out.detach() * weights).sum(dtype=torch.float64).abs()
        # A gradient that cancels to nothing is compared with a hundredth of what scaling its tensor would change.
        for x, grad in zip(wanted, torch.autograd.grad(out, wanted, weights, allow_unused=True), strict=True):
            if grad is not None:
                length = torch.linalg.vector_norm(x.detach(), dtype=torch.float64)
                least = 0.01 * total.to(length.device) / (length * math.sqrt(len(x) if x.ndim else 1))
                results.append((grad, least.nan_to_num(0.0, 0.0)))
        return results


def _own(x: Tensor, writes: bool, exact: bool) -> Tensor:
    if writes:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
    return x.detach().double() if exact and x.is_floating_point() else x.detach()


def _itself(x: Tensor) -> Tensor:
    return x


def _compare(
    found: list[tuple[Tensor, Tensor | float]], expected: list[tuple[Tensor, Tensor | float]], accuracy: Accuracy
) -> tuple[float, float]:
    """(the largest error by what is allowed, that error); the results of both are the same in number."""
    errors = [
        (_error(x, y, floor, accuracy.share), accuracy.allowed[x.dtype])
        for (x, _), (y, floor) in zip(found, expected, strict=True)
    ]
    return max((error / allowed, error) for error, allowed in errors)


def _error(found: Tensor, expected: Tensor, floor: Tensor | float, share: float) -> float:
    """The largest distance of two rows, by the length of the expected one or the root mean square of all if larger."""
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    dtype = torch.float64 if expected.dtype == torch.float64 else torch.float32
    x, y = (z.to(dtype).flatten(1) if z.ndim > 1 else z.to(dtype).reshape(-1, 1) for z in (found, expected))
    alike = (x == y) | (x.isnan() & y.isnan())
    distances = torch.linalg.vector_norm(torch.where(alike, 0.0, x - y), dim=1)
    lengths = torch.linalg.vector_norm(torch.where(y.isfinite(), y, 0.0), dim=1)
    usual = lengths.square().mean().sqrt().clamp_min(floor)
    errors = torch.where(distances == 0, 0.0, distances / lengths.maximum(usual)).nan_to_num(math.inf)
    return errors.sort().values[-1 - int(share * len(errors))].item()
