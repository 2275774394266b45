"""What an attack maximises, and the guarantee that looking at the model does not change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@contextmanager
def frozen(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Use ``module`` without weight gradients, in eval mode unless ``training``; everything is restored afterwards.

    Training flags and ``requires_grad`` come back as they were, submodule by submodule. With ``training=True`` batch
    norm uses the statistics of the batch, and writes its running ones into copies that are thrown away.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    originals = [(submodule, dict(submodule._buffers)) for submodule, _ in modes] if training else []
    try:
        for submodule, mine in originals:
            # Copying back afterwards would change tensors that the backward pass still needs.
            submodule._buffers.update({name: None if old is None else old.clone() for name, old in mine.items()})
        for submodule, _ in modes:
            submodule.training = training
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)
        for submodule, mine in originals:
            submodule._buffers.update(mine)


@dataclass(frozen=True)
class Objective:
    """losses [B] = loss(encode(x_adv)), with the model frozen.

    Split in two so that a faster executor can replace ``encode`` (batch norm folded into the convolutions, a captured
    graph) and leave the loss as it is.

    Attributes:
        model: the module whose state must not change.
        encode: x_adv [B, C, H, W] -> embeddings or logits [B, K].
        loss: the encoding -> losses [B]; the attack maximises their sum.
        training: batch norm with the statistics of the batch instead of the running ones.
    """

    model: nn.Module
    encode: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor], Tensor]
    training: bool = False

    def __call__(self, x_adv: Tensor) -> Tensor:
        """The losses [B] of x_adv [B, C, H, W]."""
        with frozen(self.model, training=self.training):
            return self.loss(self.encode(x_adv))
