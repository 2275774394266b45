"""Heads on top of the features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from clead.models.batch_norm import BatchNormConfig, Branch, BranchBatchNorm1d


class Projector(nn.Module):
    """ReLU MLP from features to embeddings, which are not normalised (the losses do that).

    Args:
        in_dim: width of the features.
        hidden_dim: width of the hidden layers.
        out_dim: width of the embeddings.
        num_layers: linear layers; 1 is a linear map.
        batch_norm: batch norm between every hidden layer and its ReLU, and for ``"all"`` on the embeddings too.
        bn: the branches of that batch norm, the encoder's own configuration.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int = 2,
        batch_norm: Literal["none", "hidden", "all"] = "none",
        bn: BatchNormConfig | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        hidden = num_layers - 1
        widths = [in_dim, *[hidden_dim] * hidden, out_dim]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        config = bn or BatchNormConfig()
        normed = {"none": 0, "hidden": hidden, "all": num_layers}[batch_norm]
        self.norms = nn.ModuleList(BranchBatchNorm1d(width, config) for width in widths[1 : 1 + normed])

    def forward(self, features: Tensor, branch: Branch) -> Tensor:
        """Features [B, in_dim] -> embeddings [B, out_dim]."""
        x = features
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.norms):
                x = self.norms[index](x, branch)
            if index < len(self.layers) - 1:
                x = F.relu(x)
        return x

    def folds(self) -> Iterator[tuple[nn.Linear, BranchBatchNorm1d]]:
        """The linear layers with a batch norm right behind them, and that."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            assert isinstance(layer, nn.Linear) and isinstance(norm, BranchBatchNorm1d)
            yield layer, norm


class LinearHead(nn.Linear):
    """Features [B, in_dim] -> logits [B, num_classes].

    Args:
        in_dim: width of the features.
        num_classes: number of labels.
        zero_init: ``initialise`` sets weight and bias to zero, as several fine-tuning protocols want.
    """

    def __init__(self, in_dim: int, num_classes: int, zero_init: bool = False) -> None:
        super().__init__(in_dim, num_classes)
        self.zero_init = zero_init
