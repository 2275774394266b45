"""Initial weights as a function of the seed and of the parameter's name, never of a global generator."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from clead.models.batch_norm import BranchState
from clead.models.projector import LinearHead
from clead.rng import Rng


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Set every parameter of ``module`` in place.

    Each parameter has its own random stream, named by its qualified name, so adding or removing a module changes no
    other's values. Convolutions: normal with variance 2 / fan_out (He et al., arXiv:1502.01852); linear layers and the
    biases of convolutions: uniform within 1 / sqrt(fan_in), torch's default; batch norm: scale 1, shift 0, running
    mean 0 and variance 1; ``LinearHead(zero_init=True)``: zero. The values are drawn on the CPU, the same for a
    module on any device.

    Args:
        module: its parameters and batch-norm statistics are overwritten.
        seed: seed of the run.

    Raises:
        TypeError: a submodule of a kind this function does not know has parameters.
    """
    for name, part in module.named_modules():
        if isinstance(part, BranchState):
            part.reset()
        elif isinstance(part, _NormBase):
            part.reset_parameters()
        elif isinstance(part, LinearHead) and part.zero_init:
            for parameter in part.parameters(recurse=False):
                parameter.zero_()
        elif isinstance(part, nn.Conv2d | nn.Linear):
            _initialise_weights(part, name, seed)
        elif any(True for _ in part.parameters(recurse=False)):
            raise TypeError(f"initialise knows Conv2d, Linear and batch norm, got {name!r} of {type(part).__name__}")


def _initialise_weights(layer: nn.Conv2d | nn.Linear, name: str, seed: int) -> None:
    bound = 1.0 / math.sqrt(layer.weight[0].numel())  # fan_in
    for own_name, parameter in layer.named_parameters(recurse=False):
        rng = _stream(f"{name}.{own_name}".removeprefix("."), seed)
        if isinstance(layer, nn.Conv2d) and own_name == "weight":
            fan_out = parameter[:, 0].numel()
            values = rng.normal(parameter.numel()) * math.sqrt(2.0 / fan_out)
        else:
            values = rng.uniform(parameter.numel(), -bound, bound)
        parameter.copy_(values.view(parameter.shape))


def _stream(name: str, seed: int) -> Rng:
    """The stream of one parameter: the hash of its name stands where data have the sample index and the view."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    sample = torch.tensor([int.from_bytes(digest, "little", signed=True)])
    return Rng.create(seed, "init", sample)
