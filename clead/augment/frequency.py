"""What is left of an image without its coarse structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clead.errors import UserError


def high_pass(images: Tensor, radius: float) -> Tensor:
    """Images without the spatial frequencies below ``radius``.

    The view x_h of AdvCL (Fan et al., NeurIPS 2021, arXiv:2111.01124): a frequency (u, v), in whole waves per image, is
    dropped where sqrt(u^2 + v^2) < radius. The mean is among the dropped, so values have both signs and are no pixels.

    Args:
        images: float32 or float64 [B, C, H, W].
        radius: waves per image; 0 keeps everything.

    Returns:
        [B, C, H, W], not clipped.

    Raises:
        UserError: no frequency of images of this size is as high as ``radius``.
    """
    height, width = images.shape[-2:]
    u, v = (torch.fft.fftfreq(n, 1 / n, dtype=images.dtype, device=images.device) for n in (height, width))
    kept = torch.hypot(u[:, None], v[None, :]) >= radius
    highest = math.hypot(height // 2, width // 2)
    if radius > highest:
        raise UserError(
            f"high_pass_radius must be at most {highest:.4g}, the highest frequency of {height} x {width} images, "
            f"got {radius:g}"
        )
    high: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * kept).real
    return high
