"""Views: copies of a model for looking at it, in an attack, faster than through the model itself.

A view owns its tensors, at fixed addresses, so that a compiled or captured pass sees new weights after ``refresh`` and
never freed memory. It takes no gradients for weights, keeps no statistics, and leaves the model's flags alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.models.batch_norm import TINY, Branch, BranchBatchNorm
from clead.models.convolution import Conv3x3, FrozenConv3x3
from clead.models.encoder import Encoder

Layer = nn.Conv2d | nn.Linear


@runtime_checkable
class Folds(Protocol):
    """A module in which batch norms follow a convolution or linear layer directly."""

    def folds(self) -> Iterator[tuple[Layer, BranchBatchNorm]]:
        """The pairs (convolution or linear layer, batch norm with branches)."""


class View:
    """A copy of ``model`` to run passes on: ``view.module``.

    In eval mode batch norm is folded into the convolution or linear layer before it, branch by branch:

        W' = W g / sqrt(v + tiny),   b' = (b - m) g / sqrt(v + tiny) + beta

    The normalisation of the pixels stays a layer of its own: the convolution behind it pads with the *normalised*
    zero, so that folded into it, it would be wrong along the borders. Where ``Model.compute_dtype`` is a half type the
    folded weights are stored in it.

    Args:
        model: any module of ours; what it shares with nothing else is copied.
        training: batch norm with the statistics of the batch (nothing is folded then) instead of the running ones.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        self.signature = signature(model)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._folded: list[_Folded] = []
        stand_ins: dict[nn.Module, nn.Module] = {}
        if not training:
            for module, dtype in _with_dtypes(model):
                for layer, norm in module.folds() if isinstance(module, Folds) else ():
                    stand_ins[layer], stand_ins[norm] = nn.Identity(), _Folded(layer, norm, dtype)
            self._folded = [module for module in stand_ins.values() if isinstance(module, _Folded)]
        self.module = self._copy(model, training, stand_ins)
        for module in self.module.modules():
            if isinstance(module, Encoder) and not training:
                module.packed = True

    def refresh(self, branches: tuple[str, ...]) -> None:
        """Take over the model's weights and statistics as they are now; ``branches`` will be asked for."""
        with torch.no_grad():
            if self._pairs:
                mine, theirs = zip(*self._pairs, strict=True)
                torch._foreach_copy_(mine, theirs)
            for folded in self._folded:
                folded.refresh(branches)

    def _copy(self, module: nn.Module, training: bool, made: dict[nn.Module, nn.Module]) -> nn.Module:
        if module in made:
            return made[module]
        copy = made[module] = module.__new__(type(module))
        copy.__dict__ = dict(module.__dict__)
        copy.training = training
        copy._parameters, copy._buffers = {}, {}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            copy._buffers[name] = mine = None if tensor is None else tensor.detach().clone()
            if tensor is not None and mine is not None:
                self._pairs.append((mine, tensor))
        copy._modules = {
            name: None if child is None else self._copy(child, training, made)
            for name, child in module._modules.items()
        }
        return copy


def signature(model: nn.Module) -> tuple[object, ...]:
    """What a view of ``model`` is built for: a model of another one needs another view."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((id(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)


def _with_dtypes(module: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[nn.Module, torch.dtype | None]]:
    """Every submodule, and what the model around it computes in (None for the dtype of its weights)."""
    dtype = getattr(module, "compute_dtype", dtype)
    yield module, dtype
    for child in module.children():
        yield from _with_dtypes(child, dtype)


class _Folded(nn.Module):
    """A layer and the batch norm behind it in one, which takes the place and the arguments of the batch norm."""

    def __init__(self, layer: Layer, norm: BranchBatchNorm, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._layer, self._norm = (layer,), (norm,)  # in tuples: they are no submodules
        self._dtype = dtype or layer.weight.dtype
        self._tensors: dict[str, tuple[Tensor, Tensor]] = {}
        self._frozen: dict[str, FrozenConv3x3] = {}

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        if isinstance(branch, str):
            return self._apply_layer(x, branch)
        parts = zip(torch.split(x, [size for _, size in branch]), branch, strict=True)
        return torch.cat([self._apply_layer(part, name) for part, (name, _) in parts])

    def refresh(self, branches: tuple[str, ...]) -> None:
        """Fold anew."""
        (layer,), (norm,) = self._layer, self._norm
        for name in branches:
            state = norm.state(name)
            if name not in self._tensors:
                weight, bias = torch.empty_like(layer.weight, dtype=self._dtype), torch.empty_like(state.bias)
                self._tensors[name] = weight.detach(), bias.detach().to(self._dtype)
                if isinstance(layer, Conv3x3):
                    self._frozen[name] = FrozenConv3x3(layer, *self._tensors[name])
            weight, bias = self._tensors[name]
            scale = state.weight * (state.running_var + TINY).rsqrt()
            weight.copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
            shift = state.running_mean if layer.bias is None else state.running_mean - layer.bias
            bias.copy_(state.bias - shift * scale)
            if name in self._frozen:
                self._frozen[name].load()

    def _apply_layer(self, x: Tensor, branch: str) -> Tensor:
        (layer,), (weight, bias) = self._layer, self._tensors[branch]
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        if branch in self._frozen:
            return self._frozen[branch](x)
        out: Tensor = layer._conv_forward(x, weight, bias)
        return out
