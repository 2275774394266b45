"""What a step of an augmentation is called, and what numbers it takes."""

from __future__ import annotations

STEPS: dict[str, tuple[str, ...]] = {
    "resized_crop": ("top", "left", "height", "width"),
    "affine": ("right", "down", "degrees", "scale"),
    "crop": ("top", "left"),
    "flip": ("whether",),
    "brightness": ("factor",),
    "jitter": ("whether", "brightness", "contrast", "saturation", "hue"),
    "grayscale": ("whether",),
}
"""Name to parameters. An op knows a step by its place here, and csrc/include/clead/augment.h by the same number."""

NAMES = tuple(STEPS)
GEOMETRY = ("resized_crop", "affine", "crop")
OF_COLOR = ("jitter", "grayscale")
