"""What an image has in low and in high frequencies."""

from __future__ import annotations

import torch
from torch import Tensor


def high_pass(images: Tensor, radius: float) -> Tensor:
    """The images without their frequencies below ``radius``, channel by channel.

    Args:
        images: float32 or float64 [B, C, H, W].
        radius: in cycles per image, by the Euclidean norm of the two frequencies; 0 changes nothing.

    Returns:
        Of the same shape and dtype; about 0 in the mean where radius > 0, hence not in [0, 1].
    """
    height, width = images.shape[2:]
    down = torch.fft.fftfreq(height, 1 / height, device=images.device)
    right = torch.fft.rfftfreq(width, 1 / width, device=images.device)
    high = down[:, None].square() + right.square() >= radius**2
    spectrum: Tensor = torch.fft.rfft2(images) * high
    result: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return result
