"""The front doors of convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import dispatch
from . import native, ops

_MULTIPLE = 16  # of channels, in the native implementation
# From so many tiles on the native implementation is the faster one: at least 16, and more where more channels are to be
# transformed, but half of that where the weight is transformed already.
_TILES, _CHANNELS_PER_TILE, _PACKED_CHANNELS_PER_TILE = 16, 16, 32


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: dispatch.Impl = "auto") -> Tensor:
    """The convolution of a 3x3 kernel with stride 1 and a border of zeros: ``F.conv2d(x, weight, bias, padding=1)``.

    ``y[b, k, i, j] = bias[k] + sum over c, p, q of weight[k, c, p, q] x[b, c, i + p - 1, j + q - 1]``

    Native is Winograd's algorithm F(4x4, 3x3) (Lavin and Gray, "Fast algorithms for convolutional neural networks",
    CVPR 2016, arXiv:1509.09308): a quarter of the multiplications, and in float32 about four times the rounding error
    of PyTorch's direct sum, 1e-6 of the result. A value that is not finite spoils the whole tile of 4x4 around it.

    Args:
        x: [B, C, H, W], float64 or float32, or any dtype that the reference's device convolves; fastest with the
            channels innermost.
        weight: [K, C, 3, 3], same dtype and device.
        bias: [K], same dtype and device, or None.
        impl: which implementation, see ``explain``. ``"native"`` takes multiples of 16 channels on both sides.

    Returns:
        [B, K, H, W] with the channels innermost; differentiable, twice as well.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
        NotImplementedError: ``impl`` cannot do it.
    """
    _check_weight(weight, bias)
    _check_images(x, weight)
    features = _features(x.shape, weight.shape[0])
    chosen = dispatch.resolve("conv3x3", impl, device=x.device, dtype=x.dtype, **features)
    out: Tensor = ops.conv_op(x, weight, bias, chosen)
    return out


def served(
    shape: Sequence[int], channels: int, device: torch.device, dtype: torch.dtype, *, packed: bool = False
) -> bool:
    """Whether native is faster than the reference, with a packed weight or not, from [B, C, H, W] to ``channels``."""
    features = _features(shape, channels, _PACKED_CHANNELS_PER_TILE if packed else _CHANNELS_PER_TILE)
    return dispatch.resolve("conv3x3", "auto", device=device, dtype=dtype, **features) != "reference"


class PackedConv3x3:
    """A convolution of weights that stay as they are for many passes, and need no gradient: native, packed once.

    The packed weights keep their addresses, so that a compiled or captured pass sees new ones after ``load``.

    Args:
        weight: [K, C, 3, 3], float64 or float32 on the CPU, K and C multiples of 16.
        bias: [K] or None.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
        NotImplementedError: the native implementation cannot do it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        _check_weight(weight, bias)
        features = {**_features(weight.shape, weight.shape[0]), "tiles": "many"}
        dispatch.resolve("conv3x3", "native", device=weight.device, dtype=weight.dtype, **features)
        self._shape = weight.shape
        self._packed, self._turned = native.room(weight, False), native.room(weight, True)
        self._bias = None if bias is None else torch.empty_like(bias, requires_grad=False)
        self.load(weight, bias)

    def load(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over other weights of the same shape and dtype."""
        _check_weight(weight, bias)
        arguments.check_together("weight", weight, "the packed one", self._packed)
        if weight.shape != self._shape or (bias is None) != (self._bias is None):
            raise ValueError(
                f"weight must be {list(self._shape)}, with a bias {'never' if self._bias is None else 'always'}, "
                f"got {list(weight.shape)} {'without' if bias is None else 'with'} one"
            )
        native.pack(weight.detach(), False, self._packed)
        native.pack(weight.detach(), True, self._turned)
        if self._bias is not None and bias is not None:
            self._bias.copy_(bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K, H, W] with the channels innermost, as ``conv3x3``; differentiable by x."""
        _check_images(x, self._packed.new_empty(()).expand(self._shape))
        out: Tensor = ops.packed_op(x, self._packed, self._turned, self._bias, self._shape[0])
        return out


def _features(shape: Sequence[int], out: int, channels_per_tile: int = _CHANNELS_PER_TILE) -> dict[str, str]:
    batch, channels, height, width = shape
    down, across = (height + 3) // 4, (width + 3) // 4
    tiles = batch * down * across
    # Where a tile has little to do, what is saved in multiplications is lost in values that nobody asked for.
    filled = 2 * height * width >= 16 * down * across
    many = filled and tiles >= max(_TILES, (channels + out) // channels_per_tile)
    return {
        "channels": "multiples of 16" if channels % _MULTIPLE == out % _MULTIPLE == 0 else "any",
        "tiles": "many" if many else "few",
    }


def _check_weight(weight: Tensor, bias: Tensor | None) -> None:
    _check_floats("weight", weight)
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or not weight.numel():
        raise ValueError(f"weight must be [K, C, 3, 3], K and C above 0, got {list(weight.shape)}")
    if bias is not None:
        _check_floats("bias", bias)
        arguments.check_together("bias", bias, "weight", weight)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{weight.shape[0]}], a number per output channel, got {list(bias.shape)}")


def _check_images(x: Tensor, weight: Tensor) -> None:
    _check_floats("x", x)
    if x.ndim != 4 or x.shape[1] != weight.shape[1] or 0 in x.shape[2:]:
        raise ValueError(
            f"x must be [B, {weight.shape[1]}, H, W] for this weight, H and W above 0, got {list(x.shape)}"
        )
    arguments.check_together("x", x, "weight", weight)


def _check_floats(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    arguments.check_dense(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    arguments.check_no_tangent(name, tensor)
