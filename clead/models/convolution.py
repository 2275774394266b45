"""The 3x3 convolutions of encoders, by Winograd's algorithm where it is the faster one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from clead_kernels.convolution import PackedConv3x3, conv3x3, served


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with stride 1, a border of zeros and no bias.

    Args:
        in_channels: of its input.
        out_channels: of its output.

    Attributes:
        winograd: take ``clead_kernels.conv3x3`` where it is faster than PyTorch: on CPUs, a rounding apart.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self.winograd = True

    def serves(self, x: Tensor, *, packed: bool = False) -> bool:
        """Whether x [B, C, H, W] is convolved by Winograd's algorithm, with a packed weight or not."""
        if not self.winograd or x.device.type != "cpu" or watched():
            return False
        return served(x.shape, self.out_channels, x.device, x.dtype, packed=packed)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.serves(input):
            return conv3x3(input, weight, bias)
        out: Tensor = super()._conv_forward(input, weight, bias)
        return out


class FrozenConv3x3:
    """The convolution of a layer with a weight and bias that stay for many passes; see ``PackedConv3x3``.

    Args:
        layer: what is asked whether it serves an input; another is convolved as the layer does it.
        weight: [K, C, 3, 3], whose values ``load`` takes over.
        bias: [K].
    """

    def __init__(self, layer: Conv3x3, weight: Tensor, bias: Tensor) -> None:
        self._layer, self._weight, self._bias = layer, weight, bias
        self._packed: PackedConv3x3 | None = None

    def load(self) -> None:
        """Take over the weight and bias as they are now."""
        if self._packed is not None:
            self._packed.load(self._weight, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K, H, W]."""
        if not self._layer.serves(x, packed=True):
            return self._layer._conv_forward(x, self._weight, self._bias)
        if self._packed is None:
            with torch.inference_mode(False):  # other passes may not be in that mode
                self._packed = PackedConv3x3(self._weight, self._bias)
        return self._packed(x)


def watched() -> bool:
    """Whether someone wants PyTorch's own operators: a compiler, a trace, a transform, autocast."""
    return (
        torch.compiler.is_compiling()
        or traced_or_transformed()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
    )


def traced_or_transformed() -> bool:
    """Whether a trace is saved or one of ``torch.func``'s transforms is active, which take no Function of ours."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch._C._are_functorch_transforms_active()
