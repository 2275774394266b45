"""``torch.ops.clead.{pgd_step,random_start,project}_{linf,l2,l1}_`` and ``momentum_``: schemas, kernels, versions.

Every op exists twice, with one schema. ``<op>_`` is the op to call, export and trace: its kernel for all devices is
the reference, and the compiled extension, where it is loaded, puts its own in front of it for the devices it serves
(C++ registers under the same name and edits nothing here). ``<op>_reference_`` is always the reference: it is what
``impl="reference"`` runs, eager and compiled alike.

The ops write x_adv and return nothing: an op that returned its argument could not be functionalised. A radius is a
float or a tensor: the tensor, where given, replaces the float, so that a float never has to become a device tensor.
x may be uint8 on the CPU and in the reference: byte/255 in the dtype of x_adv.
No op carries a gradient; the front door refuses an x_adv that would need one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import reference, reference_l1

_STEP = (
    "(Tensor(a!) x_adv, Tensor grad, Tensor x, float eps, float step_size, Tensor? eps_tensor, Tensor? step_tensor, "
    "float low, float high, bool targeted) -> ()"
)
_STEP_L1 = (
    "(Tensor(a!) x_adv, Tensor grad, Tensor x, float eps, float step_size, float sparsity, Tensor? eps_tensor, "
    "Tensor? step_tensor, Tensor? sparsity_tensor, float low, float high, bool targeted) -> ()"
)
_START = (
    "(Tensor(a!) x_adv, Tensor x, float eps, Tensor? eps_tensor, int seed, Tensor? sample_ids, SymInt step, "
    "float low, float high) -> ()"
)
_MOMENTUM = "(Tensor(a!) buffer, Tensor grad, float momentum) -> ()"
_PROJECT = "(Tensor(a!) x_adv, Tensor x, float eps, Tensor? eps_tensor, float low, float high) -> ()"

Op = Callable[..., None]


def _step_with(step: Callable[..., Tensor]) -> Op:
    def kernel(
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        eps: float,
        step_size: float,
        eps_tensor: Tensor | None,
        step_tensor: Tensor | None,
        low: float,
        high: float,
        targeted: bool,
    ) -> None:
        if x_adv.numel():
            radius = eps if eps_tensor is None else eps_tensor
            length = step_size if step_tensor is None else step_tensor
            x_adv.copy_(step(x_adv, grad, _pixels(x, x_adv), radius, length, low, high, targeted))

    return kernel


def _step_l1(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float,
    step_size: float,
    sparsity: float,
    eps_tensor: Tensor | None,
    step_tensor: Tensor | None,
    sparsity_tensor: Tensor | None,
    low: float,
    high: float,
    targeted: bool,
) -> None:
    if x_adv.numel():
        radius = eps if eps_tensor is None else eps_tensor
        length = step_size if step_tensor is None else step_tensor
        part = sparsity if sparsity_tensor is None else sparsity_tensor
        x_adv.copy_(reference_l1.pgd_step_l1(x_adv, grad, _pixels(x, x_adv), radius, length, part, low, high, targeted))


def _momentum(buffer: Tensor, grad: Tensor, momentum: float) -> None:
    if buffer.numel():
        buffer.copy_(reference.accumulate(buffer, grad, momentum))


def _pixels(x: Tensor, x_adv: Tensor) -> Tensor:
    return reference.pixels(x, x_adv.dtype)


def _start_with(start: Callable[..., Tensor]) -> Op:
    def kernel(
        x_adv: Tensor,
        x: Tensor,
        eps: float,
        eps_tensor: Tensor | None,
        seed: int,
        sample_ids: Tensor | None,
        step: int,
        low: float,
        high: float,
    ) -> None:
        if x_adv.numel():
            ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
            radius = eps if eps_tensor is None else eps_tensor
            x_adv.copy_(start(_pixels(x, x_adv), radius, seed, ids, step, low, high))

    return kernel


def _project_with(project: Callable[..., Tensor]) -> Op:
    def kernel(x_adv: Tensor, x: Tensor, eps: float, eps_tensor: Tensor | None, low: float, high: float) -> None:
        if x_adv.numel():
            radius = eps if eps_tensor is None else eps_tensor
            x_adv.copy_(project(x_adv, _pixels(x, x_adv), radius, low, high))

    return kernel


def _define(schema: str, kernel: Op) -> Op:
    """Define an op that writes its first argument, with ``kernel`` for all devices."""
    name = _library.define(schema)
    op = getattr(torch.ops.clead, name).default

    def bump(keyset: Any, x_adv: Tensor, *args: Any) -> None:
        # The dispatcher does not count a write by a custom op: autograd would miss that a saved tensor is stale.
        with torch._C._AutoDispatchBelowADInplaceOrView():
            op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, x_adv, *args)
        torch.autograd.graph.increment_version(x_adv)

    library: Any = _library.LIBRARY
    library.impl(name, kernel, "CompositeExplicitAutograd")
    library.impl(name, bump, "ADInplaceOrView", with_keyset=True)
    _library.register_fake(name, lambda *args: None)
    callable_op: Op = op
    return callable_op


def _both(name: str, arguments: str, kernel: Op) -> dict[str, Op]:
    default = _define(f"{name}_{arguments}", kernel)
    return {"native": default, "reference": _define(f"{name}_reference_{arguments}", kernel)}


# By norm, then by what dispatch.resolve answers.
PGD_STEP = {
    "linf": _both("pgd_step_linf", _STEP, _step_with(reference.pgd_step_linf)),
    "l2": _both("pgd_step_l2", _STEP, _step_with(reference.pgd_step_l2)),
    "l1": _both("pgd_step_l1", _STEP_L1, _step_l1),
}
RANDOM_START = {
    "linf": _both("random_start_linf", _START, _start_with(reference.random_start_linf)),
    "l2": _both("random_start_l2", _START, _start_with(reference.random_start_l2)),
    "l1": _both("random_start_l1", _START, _start_with(reference_l1.random_start_l1)),
}
PROJECT = {
    "linf": _both("project_linf", _PROJECT, _project_with(reference.project_linf)),
    "l2": _both("project_l2", _PROJECT, _project_with(reference.project_l2)),
    "l1": _both("project_l1", _PROJECT, _project_with(reference_l1.project_l1)),
}
MOMENTUM = _both("momentum", _MOMENTUM, _momentum)
