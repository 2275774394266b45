"""Other libraries, where they are installed (``pip install '.[rivals]'``), computing the same losses and steps.

Linear cross-entropies have no way to leave out a row's own column, but the share it has in the sum is known from its
own loss: logsumexp without it = logsumexp + log(1 - exp(-loss of the diagonal as target)). So they take part where rows
meet each other; at small temperatures that cancels, and then the gate says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import Unavailable, bound
from .cases import Case, Inputs, Loss, Perturb

CrossEntropy = Callable[[Tensor, Tensor, Tensor, str], Tensor]
"""(rows, columns, target, reduction) -> loss of rows @ columnsᵀ."""


def torch_linear(a: Tensor, b: Tensor, target: Tensor, reduction: str) -> Tensor:
    """PyTorch's own, chunked."""
    function: Any = F.linear_cross_entropy
    loss: Tensor = function(a, b, target, reduction=reduction, options=torch.nn.LinearCrossEntropyOptions())
    return loss


def inf_cl(a: Tensor, b: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Inf-CL's flash loss; it splits rows into heads whose width must divide theirs."""
    from inf_cl import cal_flash_loss

    width = next(width for width in (256, 128, 64, 32, 16, 8, 4, 2, 1) if a.shape[1] % width == 0)
    rows: Tensor = cal_flash_loss(a, b, target, head_dim=width)
    return rows.mean() if reduction == "mean" else rows


def cut_cross_entropy(a: Tensor, b: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Apple's, without its filter: beyond some thousand rows that drops the gradient of every negative."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(a, b, target, reduction=reduction, filter_eps=None)
    return loss


def liger(a: Tensor, b: Tensor, target: Tensor, reduction: str) -> Tensor:
    """LinkedIn's; gradients of columns are summed in float32, as every other contender's."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function

    options = (None, None, -100, 0.0, 0.0, reduction, None, False, torch.float32)
    loss: Tensor = Function.apply(a, b, target, *options)[0]
    return loss


def by_cross_entropy(
    cross_entropy: CrossEntropy, *leaves: Tensor, case: Loss, labels: Tensor | None, reduction: str
) -> Tensor:
    """The loss of ``case`` from a linear cross-entropy."""
    units = [F.normalize(x, dim=1) for x in leaves]
    a, b = units[0] / case.temperature, units[-1]
    index = torch.arange(a.shape[0], device=a.device)
    if not case.alone:
        loss = cross_entropy(a, b, index, reduction)
        if case.op == "clip_loss":
            loss = (loss + cross_entropy(b / case.temperature, units[0], index, reduction)) / 2
        return loss
    itself = cross_entropy(a, b, index, "none").float()
    others = itself + torch.log(-torch.expm1(-itself)) + (a * b).sum(1)
    if labels is None or case.op == "nt_xent":
        positive = (a * b.roll(a.shape[0] // 2, 0)).sum(1)
    else:
        sums = b.new_zeros(case.classes, b.shape[1]).index_add(0, labels, b)
        count = torch.bincount(labels, minlength=case.classes)[labels] - 1
        positive = ((sums[labels] - b) * a).sum(1) / count
    rows = others - positive
    return rows.mean() if reduction == "mean" else rows


def metric_learning(*leaves: Tensor, case: Loss, labels: Tensor | None, reduction: str) -> Tensor:
    """pytorch-metric-learning's losses, as its users call them; NTXentLoss pairs every positive with every negative."""
    from pytorch_metric_learning import losses, reducers

    index = torch.arange(leaves[0].shape[0], device=leaves[0].device)
    reducer = reducers.MeanReducer() if reduction == "mean" else reducers.DoNothingReducer()
    if case.op == "sup_con":
        assert labels is not None
        found = losses.SupConLoss(case.temperature, reducer=reducer)(leaves[0], labels)
    else:
        loss = losses.NTXentLoss(case.temperature, reducer=reducer)
        if case.alone:
            found = loss(leaves[0], index % (len(index) // 2))
        else:
            columns = torch.arange(leaves[1].shape[0], device=leaves[1].device)
            found = loss(leaves[0], index, ref_emb=leaves[1], ref_labels=columns)
    rows: Tensor = found if reduction == "mean" else found["loss"]["losses"]
    return rows


def foolbox(attack: Any, x_adv: Tensor, grad: Tensor, x: Tensor, *, case: Perturb) -> Tensor:
    """What its projected gradient descent does before and after the gradient."""
    import eagerpy

    moved, gradient, start = (eagerpy.astensor(v) for v in (x_adv, grad, x))
    if case.op == "random_start_":
        moved = attack.get_random_start(start, case.eps)
    if case.op == "pgd_step_":
        moved = moved + case.step_size * attack.normalize(gradient, x=moved, bounds=(0, 1))
    if case.op != "random_start_":
        moved = attack.project(moved, start, case.eps)
    image: Tensor = moved.clip(0, 1).raw
    return image


CUBIC = 2**26
"""Largest number of positives x pairs that a CPU is asked for: seconds a sample."""

LINEAR: dict[str, tuple[CrossEntropy, str, str]] = {
    "linear_cross_entropy": (torch_linear, "", "a torch that has F.linear_cross_entropy"),
    "inf_cl": (inf_cl, "inf_cl", "a CUDA device"),
    "cut_cross_entropy": (cut_cross_entropy, "cut_cross_entropy", "a CUDA device"),
    "liger": (liger, "liger_kernel", "a CUDA device"),
}
"""Name in the rows -> (function, package, what it needs beside the package)."""


def linear(name: str, case: Case, inputs: Inputs) -> Callable[..., Any]:
    """A linear cross-entropy on a case, or why it has none."""
    assert isinstance(case, Loss)
    function, package, need = LINEAR[name]
    if case.op in ("sigmoid_loss", "instance_margin"):
        raise Unavailable(f"{case.op} is no cross-entropy")
    if case.rule:
        raise Unavailable("it cannot leave out false negatives")
    _installed(package)
    met = inputs.leaves[0].is_cuda if package else hasattr(F, "linear_cross_entropy")
    if not met:
        raise Unavailable(f"needs {need}")
    return bound(partial(by_cross_entropy, function), case, inputs)


def pairs(case: Case, inputs: Inputs) -> Callable[..., Any]:
    """pytorch-metric-learning on a case, or why it is not there."""
    assert isinstance(case, Loss)
    if case.op not in ("nt_xent", "sup_con", "info_nce"):
        raise Unavailable(f"has no {case.op}")
    if case.rule:
        raise Unavailable("it cannot leave out false negatives")
    if case.op != "sup_con" and case.rows * case.pairs > CUBIC and not inputs.leaves[0].is_cuda:
        raise Unavailable("pairs every positive with every negative: too slow on a CPU for so many rows")
    _installed("pytorch_metric_learning")
    return bound(metric_learning, case, inputs)


def attack_step(case: Case, inputs: Inputs) -> Callable[..., Any]:
    """foolbox on a case, or why it is not there."""
    assert isinstance(case, Perturb)
    if case.norm == "l1":
        raise Unavailable("shrinks an l1 perturbation instead of projecting it")
    _installed("foolbox")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from foolbox import attacks
    attack = (attacks.LinfPGD if case.norm == "linf" else attacks.L2PGD)()
    return bound(partial(foolbox, attack), case, inputs)


def _installed(package: str) -> None:
    if package and find_spec(package) is None:
        raise Unavailable("not installed: pip install '.[rivals]'")
