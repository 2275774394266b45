"""Who runs a case: every implementation that ``clead_kernels.dispatch`` lists, the rivals, and the lines to beat."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

import clead_kernels
from clead_kernels import dispatch

from . import baselines, rivals
from .baselines import Unavailable
from .careful import CAREFUL
from .cases import DTYPES, THRESHOLD, Case, Inputs, Loss, Perturb, Similarity

LAUNCH_BOUND = 4096
"""Up to so many rows the caller's overhead is worth a line of its own."""

Kind = Literal["ours", "rival", "line"]


@dataclass(frozen=True)
class Contender:
    """One implementation of one op.

    Attributes:
        impl: its name in the rows.
        kind: ``ours`` is held to the numerical bar, a ``rival`` to a wider one, a ``line`` computes no result.
        build: ``(case, inputs) -> callable of the leaves`` (``line``: list of stages); raises ``Unavailable``.
        dtype: set if it runs in another dtype than the case's.
        matrices: buffers as large as the matrix of pairs that are alive at once, about: what is tried only if it fits.
        compiled: its first call is a compilation.
        tf32: its float32 products may round their operands to ten bits.
    """

    impl: str
    kind: Kind
    build: Callable[[Case, Inputs], Any]
    dtype: str | None = None
    matrices: float = 0.0
    compiled: bool = False
    tf32: bool = False


def contenders(case: Case) -> list[Contender]:
    """All who may try ``case``; the papers' eager form, which the ratios are to, comes first."""
    plain = Contender("eager", "rival", partial(_rival, baselines.EAGER), matrices=6)
    found = [plain]
    if case.part == "loss" and case.dtype in ("bf16", "fp16"):
        found.append(Contender("eager_fp32", "rival", partial(_rival, baselines.EAGER), dtype="fp32", matrices=6))
    if case.part == "loss" and case.dtype == "fp32":
        found.append(Contender("eager_tf32", "rival", _in_tf32, matrices=6, tf32=True))
    found.append(Contender("careful", "rival", partial(_rival, CAREFUL), matrices=4))
    found.append(Contender("compile", "rival", partial(_compiled, "default"), matrices=4, compiled=True))
    found.append(Contender("compile_graph", "rival", partial(_compiled, "reduce-overhead"), matrices=4, compiled=True))
    if isinstance(case, Loss):
        found += [Contender(name, "rival", partial(rivals.linear, name)) for name in rivals.LINEAR]
        # NTXentLoss holds a matrix of positives x pairs: as many matrices as there are rows.
        held = 8 if case.op == "sup_con" else 5 * case.rows
        found.append(Contender("pytorch_metric_learning", "rival", rivals.pairs, matrices=held))
    if isinstance(case, Perturb):
        found.append(Contender("foolbox", "rival", rivals.attack_step))
    found.append(
        Contender("traffic", "line", baselines.traffic)  # type: ignore[arg-type]  # Perturb, by the condition
        if isinstance(case, Perturb)
        else Contender("products", "line", baselines.products, matrices=2)  # type: ignore[arg-type]
    )
    if isinstance(case, Loss) and case.rows <= LAUNCH_BOUND:
        found.append(Contender("empty", "line", baselines.nothing))
    # Read from the table at run time: a kernel that enters it is measured without an edit here.
    for impl in dict.fromkeys(row.impl for row in dispatch.SUPPORT if row.op == case.op):
        found.append(Contender(impl, "ours", partial(_ours, impl), matrices=14 if impl == "reference" else 0))
    return found


def taken(case: Case, device: str) -> str:
    """What ``impl="auto"`` runs."""
    return dispatch.resolve(case.op, "auto", device=device, dtype=DTYPES[case.dtype], **case.features())


def _rival(table: dict[str, Callable[..., Any]], case: Case, inputs: Inputs) -> Callable[..., Any]:
    return baselines.bound(table[case.op], case, inputs)


def _in_tf32(case: Case, inputs: Inputs) -> Callable[..., Any]:
    if not inputs.leaves[0].is_cuda:
        raise Unavailable("needs a CUDA device")
    return _rival(baselines.EAGER, case, inputs)


def _compiled(mode: str, case: Case, inputs: Inputs) -> Callable[..., Any]:
    if mode == "reduce-overhead" and not inputs.leaves[0].is_cuda:
        raise Unavailable("needs a CUDA device")
    function = baselines.bound(CAREFUL[case.op], case, inputs)
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False, mode=mode)
    return compiled


def _ours(impl: str, case: Case, inputs: Inputs) -> Callable[..., Any]:
    device, dtype = inputs.leaves[0].device, inputs.leaves[0].dtype
    try:
        dispatch.resolve(case.op, impl, device=device, dtype=dtype, **case.features())
    except NotImplementedError as error:
        raise Unavailable(str(error)) from error
    op = getattr(clead_kernels, case.op)
    if isinstance(case, Loss):
        return _our_loss(op, impl, case, inputs)
    if isinstance(case, Similarity):
        return partial(op, k=case.k, impl=impl) if case.k else partial(op, temperature=case.temperature, impl=impl)
    options: dict[str, Any] = {"eps": case.eps, "norm": case.norm, "impl": impl}
    if case.op == "pgd_step_":
        return partial(op, step_size=case.step_size, **options)
    if case.op == "random_start_":
        options["seed"] = 1
    return lambda x_adv, grad, x: op(x_adv, x, **options)


def _our_loss(op: Callable[..., Any], impl: str, case: Loss, inputs: Inputs) -> Callable[..., Any]:
    options: dict[str, Any] = {"temperature": case.temperature, "impl": impl}
    if "labels" in inspect.signature(op).parameters:
        options["labels"] = inputs.labels
    if case.rule:
        options["false_negatives"] = _rule(case, inputs)
    if case.op == "instance_margin":
        return partial(_reduced, partial(op, **options))
    return partial(op, **options)


def _rule(case: Loss, inputs: Inputs) -> clead_kernels.FalseNegatives:
    if case.rule == "topk":
        return clead_kernels.FalseNegatives(topk=case.topk)
    if case.rule == "labels":
        return clead_kernels.FalseNegatives(labels=inputs.labels)
    return clead_kernels.FalseNegatives(threshold=THRESHOLD if case.rule == "threshold" else inputs.labels)


def _reduced(rows_of: Callable[..., torch.Tensor], *leaves: torch.Tensor, reduction: str) -> torch.Tensor:
    rows = rows_of(*leaves)
    return rows.mean() if reduction == "mean" else rows
