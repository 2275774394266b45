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
    "blur": ("sigma",),
}
"""Name to parameters. An op knows a step by its place here, and csrc/include/clead/augment.h by the same number."""

NAMES = tuple(STEPS)
GEOMETRY = ("resized_crop", "affine", "crop")
OF_COLOR = ("jitter", "grayscale")
MOST_RADIUS = 32


def blur_radius(height: int, width: int) -> int:
    """Pixels on either side that a blur looks at: its window is a tenth of the image wide, as SimCLR's, at least 3."""
    least = min(height, width)
    return max(0, min(max(1, least // 20), least - 1, MOST_RADIUS))
