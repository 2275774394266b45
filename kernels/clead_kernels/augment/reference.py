"""The specification of augmentation, in eager PyTorch. Everything here returns new images.

Images are float32 or float64 [B, C, H, W], meant to lie in [0, 1]; parameters are float64 [B] and are rounded to the
dtype of the images before they meet a pixel. Contrast, saturation and hue need red, green and blue. A factor of 1 (0
for the hue) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .steps import NAMES, STEPS, blur_radius


def augment(images: Tensor, parameters: Tensor, steps: Sequence[int], max_value: float, clip: bool) -> Tensor:
    """``steps``, indices into ``NAMES``, in order, with the rows of ``parameters`` [all their parameters, V * B]."""
    if images.dtype == torch.uint8:
        # A tensor, because CUDA divides by a Python number through its reciprocal: other bits than on a CPU.
        images = images.to(torch.float32) / torch.full((), max_value, device=images.device)
    views = parameters.shape[1] // max(1, len(images))
    out, first = images if views == 1 else images.repeat(views, 1, 1, 1), 0
    for step in steps:
        name = NAMES[step]
        rows = parameters[first : first + len(STEPS[name])]
        out = _APPLY[name](out, *rows)
        first += len(rows)
    return out.clamp(0, 1) if clip else out


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """The box of each image (whole pixels) resized to the whole image: bilinear, no antialiasing."""
    source_x = _source(_centres(images.shape[3], images), left, width, images.shape[3])
    source_y = _source(_centres(images.shape[2], images), top, height, images.shape[2])
    return _sample(images, source_x[:, None, :], source_y[:, :, None], padding_mode="border")


def affine(images: Tensor, right: Tensor, down: Tensor, degrees: Tensor, scale: Tensor) -> Tensor:
    """Content magnified by ``scale`` and turned anticlockwise about the centre, then moved ``right`` and ``down``.

    Shifts are in pixels, ``scale`` is above 0; bilinear, 0 outside.
    """
    height, width = images.shape[2:]
    x, y = _centres(width, images) - (width - 1) / 2, _centres(height, images) - (height - 1) / 2
    angle = torch.deg2rad(degrees)
    cos, sin = ((f(angle) / scale).to(images.dtype)[:, None, None] for f in (torch.cos, torch.sin))
    x = x[None, None, :] - right.to(images.dtype)[:, None, None]  # [B, 1, W]
    y = y[None, :, None] - down.to(images.dtype)[:, None, None]  # [B, H, 1]
    # The inverse map: an output pixel's place in the input. y points down.
    source_x = cos * x - sin * y + (width - 1) / 2
    source_y = sin * x + cos * y + (height - 1) / 2
    return _sample(images, source_x, source_y, padding_mode="zeros")


def crop(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """A window of the images' own size that starts at (top, left), whole pixels, either sign; 0 outside."""
    height, width = images.shape[2:]
    rows = top.long()[:, None] + torch.arange(height, device=images.device)
    columns = left.long()[:, None] + torch.arange(width, device=images.device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    y, x = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    window = images.permute(0, 2, 3, 1)[sample, y, x]
    return torch.where(inside[..., None], window, 0).permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor, whether: Tensor) -> Tensor:
    """Left and right exchanged where ``whether`` is not 0."""
    return torch.where(_per_image(whether != 0), images.flip(-1), images)


def jitter(
    images: Tensor, whether: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """All four adjustments in this order where ``whether`` is not 0."""
    jittered = adjust_brightness(images, brightness)
    jittered = adjust_contrast(jittered, contrast)
    jittered = adjust_saturation(jittered, saturation)
    jittered = adjust_hue(jittered, hue)
    return torch.where(_per_image(whether != 0), jittered, images)


def grayscale(images: Tensor, whether: Tensor) -> Tensor:
    """All three channels replaced by the luma where ``whether`` is not 0."""
    return torch.where(_per_image(whether != 0), luma(images), images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of standard deviation ``sigma`` pixels where that is above 0, cut off at ``blur_radius``; reflecting."""
    radius = blur_radius(*images.shape[2:])
    away = torch.arange(-radius, radius + 1, dtype=torch.float64, device=images.device)[:, None]
    bells = torch.exp(-(away**2) / (2 * torch.where(sigma > 0, sigma, 1) ** 2))
    weights = (bells / bells.sum(0)).to(images.dtype)[..., None, None, None]
    blurred = images
    for dim in (3, 2):
        size = images.shape[dim]
        padding = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded = F.pad(blurred, padding, mode="reflect")
        blurred = padded.narrow(dim, 0, size) * weights[0]
        for k in range(1, 2 * radius + 1):
            blurred = blurred + padded.narrow(dim, k, size) * weights[k]
    return torch.where(_per_image(sigma > 0), blurred, images)


def luma(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), [B, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (red * 0.299 + green * 0.587 + blue * 0.114)[:, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor · images."""
    return (images * _like(factor, images)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from the image's mean luma: factor · images + (1 - factor) · mean."""
    grey = luma(images)
    # Summed as integers: a float sum's last bit would depend on how threads share the batch.
    total = (grey.nan_to_num(0.0) * 2.0**24).to(torch.int64).sum((-3, -2, -1), keepdim=True)
    mean = (total.to(torch.float64) / (2.0**24 * grey.shape[2] * grey.shape[3])).to(images.dtype)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from the pixel's luma: factor · images + (1 - factor) · luma."""
    return _blend(images, luma(images), factor)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of the HSV hexcone by ``turn`` circles, keeping saturation and value."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sextant = sextant + 6 * _like(turn, images)[:, 0]
    channels = []
    for offset in (5, 3, 1):
        # A channel is full within one sextant of its own hue, falls to nothing at two, and is nothing beyond.
        distance = sextant + offset
        distance = distance - 6 * torch.floor(distance / 6)
        channels.append(value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.stack(channels, dim=1).clamp(0, 1)


_APPLY: dict[str, Callable[..., Tensor]] = {
    "resized_crop": resized_crop,
    "affine": affine,
    "crop": crop,
    "flip": flip,
    "brightness": adjust_brightness,
    "jitter": jitter,
    "grayscale": grayscale,
    "blur": blur,
}


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = _like(factor, images)
    return (images * weight + other * (1 - weight)).clamp(0, 1)


def _like(values: Tensor, images: Tensor) -> Tensor:
    return _per_image(values.to(images.dtype))


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _source(place: Tensor, start: Tensor, length: Tensor, size: int) -> Tensor:
    """[B, size] input places of a box stretched to ``size`` pixels; beyond its outer centres the edge is repeated."""
    start, length = start.to(place.dtype)[:, None], length.to(place.dtype)[:, None]
    inside = (place + 0.5) * (length / size) - 0.5
    return start + torch.minimum(inside.clamp(min=0), length - 1)


def _sample(images: Tensor, x: Tensor, y: Tensor, padding_mode: str) -> Tensor:
    """Bilinear values at pixel places x and y, broadcastable to [B, H, W]; pixel centres have whole numbers."""
    height, width = images.shape[2:]
    shape = (len(images), height, width)
    grid = torch.stack([((2 * x + 1) / width - 1).expand(shape), ((2 * y + 1) / height - 1).expand(shape)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def _centres(size: int, images: Tensor) -> Tensor:
    return torch.arange(size, dtype=images.dtype, device=images.device)
