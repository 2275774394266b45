"""Running one function of images many times: as it is, compiled, or as a captured CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, Literal, cast

import torch
from torch import Tensor

Executor = Literal["eager", "compile", "graph"]
Function = Callable[[Tensor], Tensor]
Build = Callable[[Function, Tensor], Function]


class Runner:
    """Makes functions fast, and says once why it cannot.

    A function may read its argument and tensors that stay where they are, and nothing else: a graph replays what was
    captured. Every kind of input gets a build of its own; whatever does not work runs as it is.

    Args:
        executor: how.
        limit: so many builds are kept; what comes after them runs as it is.
        builders: for tests.
    """

    def __init__(self, executor: Executor, limit: int = 4, builders: dict[Executor, Build] | None = None) -> None:
        self._executor, self._limit = executor, limit
        self._build = (builders or _BUILDERS).get(executor)
        self._built: dict[Hashable, Function] = {}
        self._warned = False

    def __call__(self, function: Function, name: Hashable, x: Tensor) -> Function:
        """What to call instead of ``function``, for inputs like ``x``; ``name`` tells functions apart."""
        if self._build is None:
            return function
        key = (name, x.shape, x.stride(), x.dtype, x.device)
        if key in self._built:
            return self._built[key]
        if self._warned:
            return function
        reason = f"there are more than {self._limit} kinds of batches"
        if len(self._built) < self._limit:
            try:
                with torch.enable_grad():
                    self._built[key] = self._build(function, x.detach().clone().requires_grad_())
                return self._built[key]
            except Exception as error:  # a compiler or a capture may fail in any way
                first_line = (str(error).strip().splitlines() or [""])[0]
                reason = f"{type(error).__name__}: {first_line}"[:300]
        self._warned = True
        warnings.warn(f"speed.executor={self._executor}: new batches are attacked eagerly, {reason}", stacklevel=2)
        return function


def _compile(function: Function, sample: Tensor) -> Function:
    compiled = torch.compile(function, dynamic=False)
    # Both halves are compiled when they first run: here, where a failure can be helped.
    torch.autograd.grad(compiled(sample).sum(), sample)
    return compiled


def _capture(function: Function, sample: Tensor) -> Function:
    if sample.device.type != "cuda":
        raise RuntimeError(f"a graph needs a CUDA device, got {sample.device.type}")
    _refuse_waiting(function, sample)
    with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails leaves its own as the current one
        graphed: Any = torch.cuda.make_graphed_callables(function, (sample,))
    return cast(Function, graphed)


def _refuse_waiting(function: Function, sample: Tensor) -> None:
    """Raise where a pass waits for the device: torch 2.11 does not recover from a capture that fails by that."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(function(sample).sum(), sample)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


_BUILDERS: dict[Executor, Build] = {"compile": _compile, "graph": _capture}
