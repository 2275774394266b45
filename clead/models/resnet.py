"""ResNets with torchvision's parameter names.

He et al., "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385; in the bottleneck the 3x3
convolution carries the stride, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from clead.errors import UserError
from clead.models.batch_norm import BatchNormConfig, Branch, BranchBatchNorm2d
from clead.models.convolution import Conv3x3
from clead.models.encoder import Encoder

Stem = Literal["cifar", "imagenet"]
Padding = Literal["torch", "same"]


def _same(x: Tensor, size: int, stride: int) -> Tensor:
    """Zeros around [B, C, H, W] as JAX's and TensorFlow's SAME has them: one more at the end of an odd number."""
    totals = [max((-(-length // stride) - 1) * stride + size - length, 0) for length in (x.shape[3], x.shape[2])]
    return F.pad(x, [part for total in totals for part in (total // 2, total - total // 2)])


class _SameConv2d(nn.Conv2d):
    """A convolution that pads by SAME; a view of the model runs it with other weights through this method too."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = super()._conv_forward(_same(input, self.kernel_size[0], self.stride[0]), weight, bias)
        return out


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1, padding: Padding = "torch") -> nn.Conv2d:
    if size == 3 and stride == 1:
        return Conv3x3(in_channels, out_channels)
    if padding == "same":
        return _SameConv2d(in_channels, out_channels, size, stride, bias=False)
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """What both blocks share: the shortcut, a 1x1 convolution and batch norm where the shape changes.

    Sums and ReLUs are in place, as torchvision's: a hook on a batch norm must copy what it keeps.
    """

    expansion: ClassVar[int]

    def __init__(self, in_channels: int, out_channels: int, stride: int, bn: BatchNormConfig) -> None:
        super().__init__()
        self.downsample: nn.ModuleList | None = None
        if stride != 1 or in_channels != out_channels:
            norm = BranchBatchNorm2d(out_channels, bn)
            self.downsample = nn.ModuleList([_conv(in_channels, out_channels, 1, stride), norm])

    def joined(self, out: Tensor, x: Tensor, branch: Branch) -> Tensor:
        """The block's result from that of its convolutions, whose memory it takes, and its input."""
        if self.downsample is not None:
            conv, norm = self.downsample
            x = norm(conv(x), branch)
        return F.relu(out.add_(x), inplace=True)

    def folds(self) -> Iterator[tuple[nn.Conv2d, BranchBatchNorm2d]]:
        """The convolutions, and the batch norm right behind each."""
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        norms = [module for module in self.modules() if isinstance(module, BranchBatchNorm2d)]
        yield from zip(convs, norms, strict=True)  # both in the order in which the block names them


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, bn: BatchNormConfig, padding: Padding) -> None:
        super().__init__(in_channels, width, stride, bn)
        self.conv1 = _conv(in_channels, width, 3, stride, padding)
        self.bn1 = BranchBatchNorm2d(width, bn)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = BranchBatchNorm2d(width, bn)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """[B, in_channels, H, W] -> [B, width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x), branch), inplace=True)
        return self.joined(self.bn2(self.conv2(out), branch), x, branch)


class Bottleneck(_Block):
    """A 3x3 convolution between two 1x1 ones."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, bn: BatchNormConfig, padding: Padding) -> None:
        super().__init__(in_channels, 4 * width, stride, bn)
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = BranchBatchNorm2d(width, bn)
        self.conv2 = _conv(width, width, 3, stride, padding)
        self.bn2 = BranchBatchNorm2d(width, bn)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = BranchBatchNorm2d(4 * width, bn)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """[B, in_channels, H, W] -> [B, 4 width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x), branch), inplace=True)
        out = F.relu(self.bn2(self.conv2(out), branch), inplace=True)
        return self.joined(self.bn3(self.conv3(out), branch), x, branch)


_SHAPES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(Encoder):
    """ResNet-18, 34, 50 or 101 without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        in_channels: channels of the images.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        bn: the batch-norm branches.
        width: channels of the first stage; features are 8 width (18, 34) or 32 width (50, 101) wide.
        stem: ``cifar`` is a 3x3 convolution of stride 1, ``imagenet`` a 7x7 one of stride 2 and a max pool.
        padding: of layers with a stride: ``torch``, half the kernel on all sides, or JAX's and TensorFlow's ``same``.
    """

    layer1: nn.ModuleList
    layer2: nn.ModuleList
    layer3: nn.ModuleList
    layer4: nn.ModuleList

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        bn: BatchNormConfig,
        width: int = 64,
        stem: Stem = "cifar",
        padding: Padding = "torch",
    ) -> None:
        if depth not in _SHAPES:
            raise UserError(f"depth must be one of {tuple(_SHAPES)}, got {depth}")
        if stem not in ("cifar", "imagenet"):
            raise UserError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        block, lengths = _SHAPES[depth]
        super().__init__(8 * width * block.expansion, in_channels=in_channels, mean=mean, std=std, bn=bn)
        self.width, self.stem, self.padding = width, stem, padding
        self.conv1 = _conv(in_channels, width, 3) if stem == "cifar" else _conv(in_channels, width, 7, 2, padding)
        self.bn1 = BranchBatchNorm2d(width, bn)
        channels = width
        for stage, length in enumerate(lengths):
            stage_width = width << stage
            blocks = nn.ModuleList()
            for index in range(length):
                blocks.append(block(channels, stage_width, 2 if stage and not index else 1, bn, padding))
                channels = stage_width * block.expansion
            self.add_module(f"layer{stage + 1}", blocks)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """[B, C, H, W] in [0, 1] -> features [B, feature_dim]."""
        x = F.relu(self.bn1(self.conv1(self.laid_out(self.normalize(x), self.width)), branch), inplace=True)
        if self.stem == "imagenet":  # no value is below 0, so that zeros around it are as good as nothing
            x = F.max_pool2d(_same(x, 3, 2), 3, 2) if self.padding == "same" else F.max_pool2d(x, 3, 2, padding=1)
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x = self.laid_out(x, self.width << index, 2 if index else 1)
            for block in stage:
                x = block(x, branch)
        return x.mean((2, 3))

    def folds(self) -> Iterator[tuple[nn.Conv2d, BranchBatchNorm2d]]:
        """The first convolution and its batch norm; the blocks know their own."""
        yield self.conv1, self.bn1
