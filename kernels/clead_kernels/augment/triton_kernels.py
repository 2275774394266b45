"""Augmentation in Triton: every pixel of the result is traced back to the image it shows. See ``triton``.

Steps are known when a kernel is compiled: each is the row where its parameters start, -1 where it is missing. Colours
are changed after the interpolation, or (COLORS_FIRST) at each of the four pixels that are interpolated.
"""

from __future__ import annotations

import triton
import triton.language as tl

WHOLE = tl.constexpr(16777216.0)  # lumas are summed as integers, in units of its inverse


@triton.jit
def clipped(x):
    """On [0, 1]; NaN stays NaN."""
    x = tl.where(x < 0.0, 0.0, x)
    return tl.where(x > 1.0, 1.0, x)


@triton.jit
def number(parameters, row, columns, column):
    """One parameter of this result, float32."""
    return tl.load(parameters + row * columns + column).to(tl.float32)


@triton.jit
def tap(images, at, plane, inside, max_value, PLANES: tl.constexpr):
    """Red, green and blue of some pixels (three times the same of one plane), 0 outside."""
    red = tl.load(images + at, mask=inside, other=0).to(tl.float32)
    if images.dtype.element_ty == tl.uint8:
        red = tl.div_rn(red, max_value)
    green = red
    blue = red
    if PLANES == 3:
        green = tl.load(images + plane + at, mask=inside, other=0).to(tl.float32)
        blue = tl.load(images + 2 * plane + at, mask=inside, other=0).to(tl.float32)
        if images.dtype.element_ty == tl.uint8:
            green = tl.div_rn(green, max_value)
            blue = tl.div_rn(blue, max_value)
    return red, green, blue


@triton.jit
def luma(red, green, blue):
    """ITU-R BT.601."""
    return red * 0.299 + green * 0.587 + blue * 0.114


@triton.jit
def brightened(
    red, green, blue, parameters, columns, column, BRIGHTNESS: tl.constexpr, JITTER: tl.constexpr
):  # fmt: skip
    """Brightness, and the jitter's: what the jitter's contrast takes the mean of."""
    if BRIGHTNESS >= 0:
        factor = number(parameters, BRIGHTNESS, columns, column)
        red, green, blue = clipped(red * factor), clipped(green * factor), clipped(blue * factor)
    if JITTER >= 0:
        factor = number(parameters, JITTER + 1, columns, column)
        whether = number(parameters, JITTER, columns, column) != 0
        r, g, b = clipped(red * factor), clipped(green * factor), clipped(blue * factor)
        red, green, blue = tl.where(whether, r, red), tl.where(whether, g, green), tl.where(whether, b, blue)
    return red, green, blue


@triton.jit
def channel(value, chroma, sextant, offset: tl.constexpr):
    """Full within one sextant of its own hue, falls to nothing at two, and is nothing beyond."""
    distance = sextant + offset
    distance = distance - 6.0 * tl.floor(distance / 6.0)
    return clipped(value - chroma * clipped(tl.minimum(distance, 4.0 - distance)))


@triton.jit
def turned(red, green, blue, sixths):
    """The hue, by sixths of a circle."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    divisor = tl.where(chroma == 0.0, 1.0, chroma)
    of_green = tl.div_rn(blue - red, divisor) + 2.0
    of_blue = tl.div_rn(red - green, divisor) + 4.0
    of_others = tl.where(value == green, of_green, of_blue)
    sextant = tl.where(value == red, tl.div_rn(green - blue, divisor), of_others) + sixths
    return channel(value, chroma, sextant, 5), channel(value, chroma, sextant, 3), channel(value, chroma, sextant, 1)


@triton.jit
def colored(
    red, green, blue, parameters, means, columns, column,
    BRIGHTNESS: tl.constexpr, JITTER: tl.constexpr, GRAYSCALE: tl.constexpr,
):  # fmt: skip
    """All steps of colour."""
    red, green, blue = brightened(red, green, blue, parameters, columns, column, BRIGHTNESS, JITTER)
    if JITTER >= 0:
        whether = number(parameters, JITTER, columns, column) != 0
        contrast = number(parameters, JITTER + 2, columns, column)
        saturation = number(parameters, JITTER + 3, columns, column)
        sixths = 6.0 * number(parameters, JITTER + 4, columns, column)
        other = tl.load(means + column) * (1.0 - contrast)
        r, g, b = clipped(red * contrast + other), clipped(green * contrast + other), clipped(blue * contrast + other)
        other = luma(r, g, b) * (1.0 - saturation)
        r, g, b = clipped(r * saturation + other), clipped(g * saturation + other), clipped(b * saturation + other)
        r, g, b = turned(r, g, b, sixths)
        red, green, blue = tl.where(whether, r, red), tl.where(whether, g, green), tl.where(whether, b, blue)
    if GRAYSCALE >= 0:
        whether = number(parameters, GRAYSCALE, columns, column) != 0
        grey = luma(red, green, blue)
        red, green, blue = tl.where(whether, grey, red), tl.where(whether, grey, green), tl.where(whether, grey, blue)
    return red, green, blue


@triton.jit
def boxed(place, start, length, size):
    """Input places of a box stretched to ``size`` pixels; beyond its outer centres the edge is repeated."""
    inside = (place.to(tl.float32) + 0.5) * tl.div_rn(length, size.to(tl.float32)) - 0.5
    return start + tl.minimum(tl.maximum(inside, 0.0), length - 1.0)


@triton.jit
def through_grid(place, size, low, high):
    """As grid_sample takes places: through the units of the grid, and clamped."""
    width = size.to(tl.float32)
    grid = tl.div_rn(2.0 * place + 1.0, width) - 1.0
    return tl.minimum(tl.maximum((grid + 1.0) * (width / 2.0) - 0.5, low), high)


@triton.jit
def traced(
    y, x, parameters, columns, column, height, width, GEOMETRY: tl.constexpr, PLACE: tl.constexpr
):  # fmt: skip
    """Where output pixels (y, x) come from."""
    last_y, last_x = (height - 1).to(tl.float32), (width - 1).to(tl.float32)
    a = number(parameters, PLACE, columns, column)
    b = number(parameters, PLACE + 1, columns, column)
    if GEOMETRY == "resized_crop":
        source_y = boxed(y, a, number(parameters, PLACE + 2, columns, column), height)
        source_x = boxed(x, b, number(parameters, PLACE + 3, columns, column), width)
        return through_grid(source_y, height, 0.0, last_y), through_grid(source_x, width, 0.0, last_x)
    else:
        cos = number(parameters, PLACE + 2, columns, column)
        sin = number(parameters, PLACE + 3, columns, column)
        right, down = x.to(tl.float32) - last_x / 2.0 - a, y.to(tl.float32) - last_y / 2.0 - b
        source_y = through_grid(sin * right + cos * down + last_y / 2.0, height, -2.0, last_y + 2.0)
        return source_y, through_grid(cos * right - sin * down + last_x / 2.0, width, -2.0, last_x + 2.0)


@triton.jit
def sampled(
    images, parameters, means, y, x, there, columns, column, height, width, max_value,
    GEOMETRY: tl.constexpr, PLACE: tl.constexpr, FLIP_FIRST: tl.constexpr, BRIGHTNESS: tl.constexpr,
    JITTER: tl.constexpr, GRAYSCALE: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Output pixels (y, x) before the second flip; of colour the steps that are given here, which come first."""
    plane = height.to(tl.int64) * width
    if GEOMETRY == "none" or GEOMETRY == "crop":
        top, left = y, x
        part_y, part_x = 0.0, 0.0
        if GEOMETRY == "crop":
            top = y + number(parameters, PLACE, columns, column).to(tl.int32)
            left = x + number(parameters, PLACE + 1, columns, column).to(tl.int32)
    else:
        source_y, source_x = traced(y, x, parameters, columns, column, height, width, GEOMETRY, PLACE)
        part_y, part_x = source_y - tl.floor(source_y), source_x - tl.floor(source_x)
        top, left = tl.floor(source_y).to(tl.int32), tl.floor(source_x).to(tl.int32)
    red, green, blue = 0.0, 0.0, 0.0
    for corner in tl.static_range(1 if GEOMETRY == "none" or GEOMETRY == "crop" else 4):
        row, at = top + corner // 2, left + corner % 2
        weight = (part_y if corner // 2 else 1.0 - part_y) * (part_x if corner % 2 else 1.0 - part_x)
        inside = there & (row >= 0) & (row < height) & (at >= 0) & (at < width)
        if FLIP_FIRST >= 0:
            at = tl.where(number(parameters, FLIP_FIRST, columns, column) != 0, width - 1 - at, at)
        r, g, b = tap(images, row.to(tl.int64) * width + at, plane, inside, max_value, PLANES)
        if BRIGHTNESS >= 0 or JITTER >= 0 or GRAYSCALE >= 0:
            r, g, b = colored(r, g, b, parameters, means, columns, column, BRIGHTNESS, JITTER, GRAYSCALE)
            r, g, b = tl.where(inside, r, 0.0), tl.where(inside, g, 0.0), tl.where(inside, b, 0.0)
        red, green, blue = red + r * weight, green + g * weight, blue + b * weight
    return red, green, blue


@triton.jit
def mean_kernel(
    images, parameters, means, columns, batch, height, width, max_value,
    GEOMETRY: tl.constexpr, PLACE: tl.constexpr, FLIP_FIRST: tl.constexpr, BRIGHTNESS: tl.constexpr,
    JITTER: tl.constexpr, COLORS_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mean luma, after brightness, of the image that the jitter sees; a flip does not change it."""
    column = tl.program_id(0)
    images += (column % batch).to(tl.int64) * 3 * height * width
    total = tl.zeros([BLOCK], tl.int64)
    for first in range(0, height * width, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        there = pixel < height * width
        red, green, blue = sampled(
            images, parameters, means, pixel // width, pixel % width, there, columns, column, height, width, max_value,
            "none" if COLORS_FIRST else GEOMETRY, PLACE, -1 if COLORS_FIRST else FLIP_FIRST, -1, -1, -1, 3,
        )  # fmt: skip
        red, green, blue = brightened(red, green, blue, parameters, columns, column, BRIGHTNESS, JITTER)
        light = luma(red, green, blue)
        light = tl.where(light == light, light, 0.0)  # NaN is no integer
        total += tl.where(there, (light * WHOLE).to(tl.int64), 0)
    mean = tl.sum(total, axis=0).to(tl.float64) / (WHOLE * (height * width).to(tl.float64))
    tl.store(means + column, mean.to(tl.float32))


@triton.jit
def augment_kernel(
    images, parameters, means, out, columns, batch, channels, height, width, max_value,
    GEOMETRY: tl.constexpr, PLACE: tl.constexpr, FLIP_FIRST: tl.constexpr, FLIP: tl.constexpr,
    BRIGHTNESS: tl.constexpr, JITTER: tl.constexpr, GRAYSCALE: tl.constexpr, COLORS_FIRST: tl.constexpr,
    PLANES: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of one result, in all three planes or in one of ``channels``."""
    column = tl.program_id(0) // (channels // PLANES)
    plane = height.to(tl.int64) * width
    first_plane = tl.program_id(0) % (channels // PLANES)
    images += ((column % batch).to(tl.int64) * channels + first_plane) * plane
    out += (column.to(tl.int64) * channels + first_plane) * plane
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = pixel < plane
    y, x = pixel // width, pixel % width
    if FLIP >= 0:
        x = tl.where(number(parameters, FLIP, columns, column) != 0, width - 1 - x, x)
    red, green, blue = sampled(
        images, parameters, means, y, x, there, columns, column, height, width, max_value, GEOMETRY, PLACE, FLIP_FIRST,
        BRIGHTNESS if COLORS_FIRST else -1, JITTER if COLORS_FIRST else -1, GRAYSCALE if COLORS_FIRST else -1, PLANES,
    )  # fmt: skip
    if not COLORS_FIRST:
        red, green, blue = colored(
            red, green, blue, parameters, means, columns, column, BRIGHTNESS, JITTER, GRAYSCALE
        )  # fmt: skip
    if CLIP:
        red, green, blue = clipped(red), clipped(green), clipped(blue)
    tl.store(out + pixel, red.to(out.dtype.element_ty), mask=there)
    if PLANES == 3:
        tl.store(out + plane + pixel, green.to(out.dtype.element_ty), mask=there)
        tl.store(out + 2 * plane + pixel, blue.to(out.dtype.element_ty), mask=there)
