"""A small encoder for small images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from clead.models.batch_norm import BatchNormConfig, Branch, BranchBatchNorm2d
from clead.models.encoder import Encoder


class DigitsEncoder(Encoder):
    """Four 3x3 convolutions, each with batch norm and ReLU, and the mean over what is left of the image.

    1.2 million multiply-adds per 8x8 image at the default width.

    Args:
        in_channels: channels of the images.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        bn: the batch-norm branches.
        width: channels of the first convolution; features are 4 width wide.
    """

    def __init__(
        self, *, in_channels: int, mean: Sequence[float], std: Sequence[float], bn: BatchNormConfig, width: int = 32
    ) -> None:
        super().__init__(4 * width, in_channels=in_channels, mean=mean, std=std, bn=bn)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)  # 8x8
        self.bn1 = BranchBatchNorm2d(width, bn)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)  # 4x4
        self.bn2 = BranchBatchNorm2d(2 * width, bn)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = BranchBatchNorm2d(2 * width, bn)
        self.conv4 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)  # 2x2
        self.bn4 = BranchBatchNorm2d(4 * width, bn)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """[B, C, H, W] in [0, 1] -> features [B, feature_dim]."""
        x = F.relu(self.bn1(self.conv1(self.normalize(x)), branch), inplace=True)
        x = F.relu(self.bn2(self.conv2(x), branch), inplace=True)
        x = F.relu(self.bn3(self.conv3(x), branch), inplace=True)
        x = F.relu(self.bn4(self.conv4(x), branch), inplace=True)
        return x.mean((2, 3))

    def folds(self) -> Iterator[tuple[nn.Conv2d, BranchBatchNorm2d]]:
        """The convolutions, and the batch norm right behind each."""
        yield from zip(
            (self.conv1, self.conv2, self.conv3, self.conv4), (self.bn1, self.bn2, self.bn3, self.bn4), strict=True
        )
