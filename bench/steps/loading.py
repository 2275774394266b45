"""Loading and augmentation as the official codes do it: one PIL image after the other, in the process that trains."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

BILINEAR = Image.Resampling.BILINEAR


class PILLoading:
    """Takes the place of an augmentation: images come from the data set one by one, as integers, and leave stacked.

    Every image is an own PIL image, transformed by PIL's own functions with Python's random numbers, and turned into a
    float tensor. The values are of the same distribution as ours, up to PIL's rounding to integers, and not the same.

    Args:
        augmentation: whose transforms to do.
        pool: the data set, float [N, C, H, W] in [0, 1].
    """

    def __init__(self, augmentation: Any, pool: Tensor) -> None:
        self._augmentation, self._pool = augmentation, pool
        self._data = (pool.cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        self._random = random.Random(0)

    def __call__(self, images: Tensor, rng: Any) -> Tensor:
        loaded = [self._one(index) for index in (rng.sample_ids & 0xFFFFFFFF).tolist()]
        return torch.stack(loaded).to(images.device)

    def faded(self, strength: float) -> PILLoading:
        """As the augmentation's."""
        return PILLoading(self._augmentation.faded(strength), self._pool)

    def _one(self, index: int) -> Tensor:
        pixels = self._data[index]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        for transform in self._augmentation.transforms:
            image = TRANSFORMS[type(transform).__name__](image, transform, self._random)
        found = torch.from_numpy(numpy.array(image)).view(*image.size[::-1], -1)
        return found.permute(2, 0, 1).contiguous().float() / 255


Random = random.Random


def _affine(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    angle, scale = math.radians(rng.uniform(-t.rotation, t.rotation)), rng.uniform(*t.scale)
    shift, (width, height) = [rng.uniform(-t.shift, t.shift) for _ in range(2)], image.size
    a, b, x, y = math.cos(angle) / scale, math.sin(angle) / scale, width / 2, height / 2
    offset = (x - a * (x + shift[0]) - b * (y + shift[1]), y + b * (x + shift[0]) - a * (y + shift[1]))
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, offset[0], -b, a, offset[1]), BILINEAR)


def _crop(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    (width, height), wide = image.size, ImageOps.expand(image, t.padding)
    left, top = rng.randint(0, 2 * t.padding), rng.randint(0, 2 * t.padding)
    return wide.crop((left, top, left + width, top + height))


def _flip(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < t.p else image


def _resized_crop(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(*t.scale)
        ratio = math.exp(rng.uniform(*map(math.log, t.ratio)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return image.crop((left, top, left + w, top + h)).resize((width, height), BILINEAR)
    return image


def _brightness(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(1 - t.strength, 1 + t.strength))


def _jitter(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    if rng.random() >= t.p:
        return image
    todo: list[tuple[Any, float]] = [(ImageEnhance.Brightness, t.brightness), (ImageEnhance.Contrast, t.contrast)]
    todo += [(ImageEnhance.Color, t.saturation), (None, t.hue)]
    rng.shuffle(todo)
    for enhance, strength in todo:
        if enhance is None:
            image = _hue(image, rng.uniform(-strength, strength))
        else:
            image = enhance(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def _hue(image: Image.Image, turn: float) -> Image.Image:
    hue, *others = image.convert("HSV").split()
    turned = (numpy.array(hue).astype(numpy.int16) + round(255 * turn)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(numpy.uint8)), *others)).convert("RGB")


def _gray(image: Image.Image, t: Any, rng: Random) -> Image.Image:
    return image.convert("L").convert("RGB") if rng.random() < t.p else image


TRANSFORMS: dict[str, Callable[[Image.Image, Any, Random], Image.Image]] = {
    "RandomAffine": _affine,
    "RandomBrightness": _brightness,
    "RandomCrop": _crop,
    "HorizontalFlip": _flip,
    "RandomResizedCrop": _resized_crop,
    "ColorJitter": _jitter,
    "RandomGrayscale": _gray,
}
"""What PIL does for every kind of transform of ``clead.augment``."""
