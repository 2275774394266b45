"""The gradients of one step, of a whole batch or of one part after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clead.methods.base import Batch


def add_gradients(loss: Callable[[Batch], dict[str, Tensor]], batch: Batch, accumulate: int = 1) -> dict[str, Tensor]:
    """Add the gradients of the loss of ``batch`` to those of the parameters.

    With several parts it is the mean of their losses: the same as the whole batch's where a loss is a mean over images
    and no layer mixes them, and another one where images are compared with each other.

    Args:
        loss: batch -> terms of the loss, scalars.
        batch: of B samples.
        accumulate: number of parts, a divisor of B; the activations of one part are held at a time.

    Returns:
        The terms, without their graph: those of the batch, or the means over the parts.
    """
    parts = batch.split(accumulate)
    every = []
    for part in parts:
        terms = loss(part)
        (torch.stack(list(terms.values())).sum() / len(parts)).backward()
        every.append({name: term.detach() for name, term in terms.items()})
    if batch.metrics is not None and len(parts) > 1:
        batch.metrics.update(_means([part.metrics or {} for part in parts]))
    return _means(every)


def _means(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every value over the parts, which have the same names."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
