"""What every encoder has in common: normalised input, a width, branches, and an export everyone can read."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clead.errors import UserError
from clead.models.batch_norm import BatchNormConfig
from clead.models.convolution import Conv3x3
from clead.models.layout import laid_out


class Normalize(nn.Module):
    """(x - mean) / std per channel, the first layer of every encoder, so that eps and bounds mean pixels.

    Args:
        mean: one value per channel, of pixels in [0, 1].
        std: one positive value per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise UserError(f"std must be {len(mean)} positive values, as many as mean has, got {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise floating-point [B, C, H, W]."""
        # Without the check one gray channel would be broadcast to the three means of an RGB encoder.
        if x.dim() != 4 or x.shape[1] != self.mean.shape[0] or not x.is_floating_point():
            raise ValueError(
                f"x must be floating point [B, {self.mean.shape[0]}, H, W], got {x.dtype} {tuple(x.shape)}"
            )
        return (x - self.mean) / self.std


class Encoder(nn.Module):
    """Base of all encoders: ``forward(x, branch)`` takes images in [0, 1] to features [B, feature_dim].

    Args:
        feature_dim: width of the features.
        in_channels: channels of the images.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        bn: the batch-norm branches.

    Attributes:
        feature_dim: width of the features.
        bn_config: the batch-norm branches.
        normalize: the first layer.
        by_rule: ``laid_out`` changes layouts; otherwise that of the weights is that of all feature maps.
        winograd: see ``Conv3x3``; set by ``use_winograd``.
        packed: the weights of these convolutions are packed, as in a view.
    """

    by_rule = True
    winograd = True
    packed = False

    def __init__(
        self, feature_dim: int, *, in_channels: int, mean: Sequence[float], std: Sequence[float], bn: BatchNormConfig
    ) -> None:
        super().__init__()
        if len(mean) != in_channels:
            raise UserError(f"mean must hold one value for each of {in_channels} channels, got {tuple(mean)}")
        self.feature_dim = feature_dim
        self.bn_config = bn
        self.normalize = Normalize(mean, std)

    def laid_out(self, x: Tensor, width: int, stride: int = 1) -> Tensor:
        """The same x [B, C, H, W], laid out for convolutions to ``width`` channels, the first of ``stride``."""
        return laid_out(x, width, stride, self.winograd, self.packed) if self.by_rule else x

    def use_winograd(self, winograd: bool) -> None:
        """Whether 3x3 convolutions may be computed by Winograd's algorithm."""
        self.winograd = winograd
        for module in self.modules():
            if isinstance(module, Conv3x3):
                module.winograd = winograd

    @property
    def evaluation_branch(self) -> str:
        """The batch-norm branch of evaluation."""
        return self.bn_config.evaluation_branch

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) per channel: exactly what the first layer applies, which a loaded state may have set."""
        # Through numpy's shortest decimal: 0.3 for the float32 nearest to it, not the digits of its double.
        mean, std = (
            tuple(float(str(value)) for value in buffer.flatten().float().cpu().numpy())
            for buffer in (self.normalize.mean, self.normalize.std)
        )
        return mean, std


def torchvision_state_dict(encoder: Encoder, branch: str) -> dict[str, Tensor]:
    """The encoder's weights under the names of torchvision's models, with one batch-norm branch.

    ``layer1.0.bn1.branch.<branch>.weight`` becomes ``layer1.0.bn1.weight``, the other branches are left out, and
    ``num_batches_tracked`` (0) is added, so that torchvision's model of the same shape loads it strictly once its
    ``fc`` is an identity. The normalisation of the input is not part of torchvision's models; apply
    ``encoder.normalization`` first.

    Args:
        encoder: any encoder; a ResNet gives torchvision's names.
        branch: the batch-norm branch to keep.

    Returns:
        Contiguous copies that share no memory.

    Raises:
        UserError: the encoder has no such branch.
    """
    if branch not in encoder.bn_config.branches:
        raise UserError(f"branch must be one of {encoder.bn_config.branches}, got {branch!r}")
    tensors: dict[str, Tensor] = {}
    for key, value in encoder.state_dict().items():
        match = re.fullmatch(r"(.+)\.branch\.([^.]+)\.([^.]+)", key)
        if key.startswith("normalize.") or (match and match[2] != branch):
            continue
        name = f"{match[1]}.{match[3]}" if match else key
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        if name.endswith(".running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return tensors
