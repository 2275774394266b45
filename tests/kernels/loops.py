"""The contrastive losses pair by pair in float64, as the docstrings of the front doors define them.

Nothing is shared with the package: the truth of the fuzz tests. A row is a vector of logits, a list of positives and
the weights of the negatives in the denominator; sums of exponentials are taken as logarithms, so that no temperature
leaves the range. Autograd goes through what is written, and so gives the gradients of the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEVER = math.inf


class Loop(NamedTuple):
    """Losses [M], logits [M, N], positives and weighted negatives of each row, and what makes a case hard.

    ``clearance``: how far any cosine is from the cut that decides about it. ``stress``: per row, by how much the form
    magnifies an error of the mass of the negatives. ``unsettled``: whether a debiased mass is about at its floor.
    """

    rows: Tensor
    logits: Tensor
    positives: list[list[int]]
    clearance: float
    stress: list[float]
    unsettled: bool


def unit(x: Tensor) -> Tensor:
    """Rows over their norms, as ``F.normalize``; no gradient where a norm is below 1e-12."""
    norm = x.detach().norm(dim=1, keepdim=True)
    live = norm >= 1e-12
    safe = torch.where(live, x, 1.0)
    return torch.where(live, safe / safe.norm(dim=1, keepdim=True), x.detach() / 1e-12)


def logits_of(a: Tensor, b: Tensor, temperature: Tensor, normalize: bool, metric: str) -> Tensor:
    if normalize:
        a, b = unit(a), unit(b)
    if metric == "cosine":
        return a @ b.T / temperature
    return -torch.stack([((row - b) ** 2).sum(1) for row in a]) / temperature


def false_negatives(i: int, negatives: list[int], cosines: list[float], rule) -> tuple[set[int], float]:
    """The negatives of row i that a ``FalseNegatives`` calls false, and the least distance of a cosine to a cut."""
    found, clearance = [], NEVER
    if rule.threshold is not None:
        cut = rule.threshold
        if isinstance(cut, Tensor):
            cut = (cut[i] if cut.ndim else cut).item()
        found.append({j for j in negatives if cosines[j] > cut})
        clearance = min([clearance, *(abs(cosines[j] - cut) for j in negatives)])
    if rule.topk is not None:
        ranked = sorted((cosines[j] for j in negatives), reverse=True)
        cut = ranked[rule.topk - 1] if rule.topk <= len(ranked) else -math.inf
        found.append({j for j in negatives if cosines[j] >= cut})
        clearance = min([clearance, *(abs(cut - x) for x in ranked[rule.topk :])])
    if rule.labels is not None:
        of_rows, of_columns = rule.labels if isinstance(rule.labels, tuple) else (rule.labels, rule.labels)
        levels = list(
            zip(
                of_rows.reshape(-1, of_rows.shape[-1]).tolist(),
                of_columns.reshape(-1, of_columns.shape[-1]).tolist(),
                strict=True,
            )
        )
        meets = any if rule.levels == "any" else all
        found.append({j for j in negatives if meets(x[i] >= 0 and x[i] == y[j] for x, y in levels)})
    return (set.union(*found) if rule.combine == "or" else set.intersection(*found)), clearance


def log_mass(
    s: Tensor, own: Tensor, kappa: dict[int, float], temperature: Tensor, form: dict
) -> tuple[Tensor, float, bool]:
    """log N of a row, by how much it magnifies errors of its parts, and whether it is about at its floor."""
    columns = list(kappa)
    logs = torch.tensor([math.log(kappa[j]) for j in columns], dtype=s.dtype)
    beta, t, number = form["hard_negative_beta"], form["debias"], sum(kappa.values())
    mass = (s[columns] + logs).logsumexp(0)
    if not columns or not (beta or t):
        return mass, 1.0, False
    if beta:
        hard = ((1 + beta) * s[columns] + logs).logsumexp(0) - (beta * s[columns] + logs).logsumexp(0)
        mass = math.log(number) + hard
    if not t:
        return mass, 1.0 + 2.0 * beta, False
    shift = s.detach().max()
    total, mean = (mass - shift).exp(), (own - shift).exp().mean()
    corrected = (total - number * t * mean) / (1 - t)
    floor = number * (-1 / temperature - shift).exp()
    share = ((total + number * t * mean) / (1 - t) / torch.maximum(corrected, floor)).item()
    settled = abs(corrected - floor) > 1e-2 * total
    return torch.maximum(corrected, floor).log() + shift, (1.0 + 2.0 * beta) * share, not settled


def row_loss(s: Tensor, positives: list[int], kappa: dict[int, float], temperature: Tensor, form: dict):
    """Loss of a row with logits ``s``; ``kappa``: {negative: its weight in the denominator}."""
    kappa = {j: weight for j, weight in kappa.items() if weight > 0}
    if not positives or (form["denominator"] == "negatives" and not kappa):
        return 0.0 * s.sum(), 1.0, False
    own = s[positives]
    mass, stress, unsettled = log_mass(s, own, kappa, temperature, form)
    everything = torch.cat([own, mass[None]]).logsumexp(0)
    denominator = {"all": everything, "own_positive": torch.logaddexp(own, mass), "negatives": mass}
    log_probability = own - denominator[form["denominator"]]
    if form["positives_reduction"] == "inside":
        loss = math.log(len(positives)) - log_probability.logsumexp(0)
    else:
        loss = -log_probability.sum() / (len(positives) if form["positives_reduction"] == "mean" else 1)
    if form["spread"]:
        terms = {j: s[j] + math.log(weight) for j, weight in kappa.items()}
        for j in kappa:  # 1 - p_j is the share of all others
            others = torch.stack([*own, *(terms[k] for k in kappa if k != j)]).logsumexp(0)
            loss = loss - form["spread"] * (others - everything)
    return loss, stress, unsettled


def contrast(
    a: Tensor,
    b: Tensor,
    temperature: Tensor,
    positive: Callable[[int, int], bool],
    itself: Callable[[int, int], bool],
    *,
    rule=None,
    normalize: bool = True,
    metric: str = "cosine",
    **form,
) -> Loop:
    """All rows of a call; ``form`` has the five options of the loss, ``rule`` the false negatives."""
    logits, cosines = logits_of(a, b, temperature, normalize, metric), (unit(a) @ unit(b).T).tolist()
    rows, all_positives, stresses, clearance, unsettled = [], [], [], NEVER, False
    for i in range(len(a)):
        columns = [j for j in range(len(b)) if not itself(i, j)]
        positives = [j for j in columns if positive(i, j)]
        negatives = [j for j in columns if not positive(i, j)]
        kappa = dict.fromkeys(negatives, 1.0)
        if rule is not None:
            false, distance = false_negatives(i, negatives, cosines[i], rule)
            clearance = min(clearance, distance)
            if rule.treatment == "attract":
                positives = sorted({*positives, *false})
            kappa = {j: (rule.weight if rule.treatment == "weight" else 0.0) if j in false else 1.0 for j in negatives}
        loss, stress, close = row_loss(logits[i], positives, kappa, temperature, form)
        unsettled |= close
        rows.append(loss), all_positives.append(positives), stresses.append(stress)
    return Loop(torch.stack(rows) if rows else logits.sum(1), logits, all_positives, clearance, stresses, unsettled)


def margin(a: Tensor, b: Tensor, temperature: Tensor, positives: list[int], normalize: bool) -> Loop:
    """max_{j != p} s_ij - s_ip; 0 without a positive or another candidate. ``clearance``: first to second largest."""
    logits, rows, clearance = logits_of(a, b, temperature, normalize, "cosine"), [], NEVER
    for i, p in enumerate(positives):
        others = sorted((j for j in range(len(b)) if j != p), key=lambda j: -logits[i, j].item())
        if p < 0 or not others:
            rows.append(0.0 * logits[i].sum())
            continue
        rows.append(logits[i, others[0]] - logits[i, p])
        if len(others) > 1:
            gap = (logits[i, others[0]] - logits[i, others[1]]) * temperature
            clearance = min(clearance, gap.item())
    return Loop(torch.stack(rows), logits, [[p] for p in positives], clearance, [1.0] * len(rows), False)


def sigmoid(a: Tensor, b: Tensor, temperature: Tensor, bias: Tensor, normalize: bool) -> Loop:
    """-sum_j log sigmoid(z_ij (s_ij + bias)), z_ij = 1 for j = i, else -1."""
    logits = logits_of(a, b, temperature, normalize, "cosine") + bias
    rows = []
    for i in range(len(a)):
        signs = torch.tensor([1.0 if j == i else -1.0 for j in range(len(b))], dtype=a.dtype)
        rows.append(torch.logaddexp(-signs * logits[i], torch.zeros(len(b), dtype=a.dtype)).sum())
    return Loop(torch.stack(rows), logits, [[i] for i in range(len(a))], NEVER, [1.0] * len(a), False)
