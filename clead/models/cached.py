"""Encoding a batch whose activations do not fit into memory, with exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def cached_encoding(
    module: nn.Module, x: Tensor, *, chunk: int, encode: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The encodings z of x, at most ``chunk`` rows at a time; a loss of all of z has its exact gradient.

    With c running over the chunks and w the weights,

        dL/dw = sum_c (dz_c/dw)^T dL/dz_c,

    so a loss needs all encodings but the activations of no image, and a chunk's dz_c/dw none of the other chunks'.
    Chunks are encoded without keeping activations; when the loss is differentiated, each in turn is encoded again, with
    the same random numbers, and its activations are dropped before the next. Memory is that of one chunk, plus x and z;
    the price is a second forward pass. Gao et al., "Scaling deep contrastive learning batch size under memory limited
    setup", RepL4NLP 2021, arXiv:2101.06983 (GradCache), as a function of the encoder alone:

        loss = nt_xent(cached_encoding(encoder, images, chunk=256), temperature=0.5)
        loss.backward()

    **Batch norm** in train mode normalises a chunk by the chunk's own statistics, and moves its running statistics once
    for every chunk, in the first pass only. So z and the gradient are those of ``encode`` called on one chunk after the
    other, which is ``encode`` on the whole batch where no layer mixes images: batch norm in eval mode, layer norm,
    group norm.

    Args:
        module: what encodes; its training flags and ``requires_grad`` must not change before the gradient is taken.
        x: [N, ...], any dtype; may require a gradient itself.
        chunk: at least 1. Chunks are of nearly equal size, so none is a small rest.
        encode: x [n, ...] -> z [n, ...] by ``module``; None calls it.

    Returns:
        z [N, ...].
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    run = module if encode is None else encode
    parts = x.tensor_split(max(1, math.ceil(len(x) / chunk)))
    if not torch.is_grad_enabled():
        return torch.cat([run(part) for part in parts])
    # The first pass runs as it is, the second with the statistics held.
    contexts = lambda: (nullcontext(), _statistics_held(module))  # noqa: E731
    return torch.cat([checkpoint(run, part, use_reentrant=False, context_fn=contexts) for part in parts])


@contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    """Let what runs inside move copies of the buffers that it may move, and the buffers themselves not."""
    held = [(submodule, dict(submodule._buffers)) for submodule in module.modules() if submodule.training]
    try:
        for submodule, mine in held:
            copies = {name: None if buffer is None else buffer.clone() for name, buffer in mine.items()}
            submodule._buffers.update(copies)
        yield
    finally:
        for submodule, mine in held:
            submodule._buffers.update(mine)
