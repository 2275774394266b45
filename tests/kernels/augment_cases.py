"""Images and steps for the tests of augmentation, and the same in float64 by loops, one pixel at a time."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import torch

ORDERS = {
    "box, colours": ("resized_crop", "flip", "jitter", "grayscale"),
    "colours, box": ("jitter", "grayscale", "flip", "resized_crop"),
    "turned": ("affine", "brightness"),
    "window": ("crop", "flip"),
    "mirrored first": ("flip", "affine", "flip"),
    "bright window": ("brightness", "jitter", "crop"),
    "grey": ("grayscale",),
    "blurred": ("resized_crop", "blur", "flip"),
}
OF_TRITON = tuple(name for name, steps in ORDERS.items() if "blur" not in steps)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def steps_of(names, count, height, width, seed=1):
    """(name, parameters) of steps on ``count`` results; of what may happen, about half does."""
    return [(name, parameters(name, noise(5, count, seed=seed + 7 * i), height, width)) for i, name in enumerate(names)]


def parameters(name, u, height, width):
    half = (u < 0.5).to(u.dtype)
    if name == "resized_crop":
        size = torch.stack([(1 + u[2] * height).floor(), (1 + u[3] * width).floor()])
        return torch.cat([(u[:2] * (torch.tensor([[height], [width]]) - size + 1)).floor(), size])
    return {
        "affine": torch.stack([6 * u[0] - 3, 6 * u[1] - 3, 360 * u[2], 0.5 + u[3]]),
        "crop": (9 * u[:2] - 4).floor(),
        "flip": half[:1],
        "brightness": 0.5 + u[:1],
        "jitter": torch.stack([half[0], 0.4 + u[1], 0.4 + u[2], 0.4 + u[3], u[4] - 0.5]),
        "grayscale": half[:1],
        "blur": half[:1] * (0.1 + 2 * u[1:2]),
    }[name]


def loop(images, steps):
    """By definition, in Python floats."""
    count = steps[0][1].shape[1]
    out = []
    for i in range(count):
        image = images[i % len(images)].double().numpy()
        for name, numbers in steps:
            image = ONE[name](image, *numbers[:, i].tolist())
        out.append(torch.from_numpy(np.clip(image, 0, 1)))
    return torch.stack(out)


def pixel(image, y, x, repeat):
    """Bilinear; beyond the outer centres the edge, or 0."""
    height, width = image.shape[1:]
    if repeat:
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = np.zeros(len(image))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            if weight and 0 <= row < height and 0 <= column < width:
                total += weight * image[:, row, column]
    return total


def each(image, value):
    out = np.empty_like(image)
    for y, x in np.ndindex(image.shape[1:]):
        out[:, y, x] = value(y, x)
    return out


def resized_crop(image, top, left, height, width):
    box = image[:, int(top) : int(top + height), int(left) : int(left + width)]
    tall, wide = height / image.shape[1], width / image.shape[2]
    return each(image, lambda y, x: pixel(box, (y + 0.5) * tall - 0.5, (x + 0.5) * wide - 0.5, repeat=True))


def affine(image, right, down, degrees, scale):
    middle_y, middle_x = (image.shape[1] - 1) / 2, (image.shape[2] - 1) / 2
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale

    def value(y, x):
        y, x = y - middle_y - down, x - middle_x - right
        return pixel(image, sin * x + cos * y + middle_y, cos * x - sin * y + middle_x, repeat=False)

    return each(image, value)


def luma(image):
    return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def jitter(image, whether, brightness, contrast, saturation, hue):
    if not whether:
        return image
    image = np.clip(image * brightness, 0, 1)
    image = np.clip(image * contrast + luma(image).mean() * (1 - contrast), 0, 1)
    image = np.clip(image * saturation + luma(image) * (1 - saturation), 0, 1)

    def value(y, x):
        turned, *rest = colorsys.rgb_to_hsv(*image[:, y, x])
        return colorsys.hsv_to_rgb((turned + hue) % 1, *rest)

    return each(image, value)


def blur(image, sigma):
    if not sigma:
        return image
    for axis in (1, 2):
        radius = min(max(1, min(image.shape[1:]) // 20), min(image.shape[1:]) - 1)
        bells = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-radius, radius + 1)]
        padded = np.pad(image, [(0, 0), *((radius,) * 2 if i == axis else (0, 0) for i in (1, 2))], mode="reflect")
        parts = [bell * padded.take(range(k, k + image.shape[axis]), axis) for k, bell in enumerate(bells)]
        image = sum(parts) / sum(bells)
    return image


ONE = {
    "resized_crop": resized_crop,
    "affine": affine,
    "crop": lambda image, top, left: each(image, lambda y, x: pixel(image, y + top, x + left, repeat=False)),
    "flip": lambda image, whether: image[..., ::-1].copy() if whether else image,
    "brightness": lambda image, factor: np.clip(image * factor, 0, 1),
    "jitter": jitter,
    "blur": blur,
    "grayscale": lambda image, whether: np.broadcast_to(luma(image), image.shape).copy() if whether else image,
}
