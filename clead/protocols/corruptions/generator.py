"""The nineteen types with their constants, and the data set one of them makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clead.data import Dataset
from clead.protocols.corruptions import blur, digital, noise, weather
from clead.protocols.corruptions.draws import Draws
from clead.rng import Rng, stream_key

_PART = 1000  # images at once


@dataclass(frozen=True)
class Corruption:
    """One type.

    Attributes:
        apply: images [B, C, H, W] in [0, 1], a severity's constants, random numbers -> images of the same shape.
        constants: of severities 1 to 5.
        colour: needs three channels.
    """

    apply: Callable[[Tensor, Any, Draws], Tensor]
    constants: tuple[Any, ...]
    colour: bool = False


CORRUPTIONS = {
    "gaussian_noise": Corruption(noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(noise.shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": Corruption(blur.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": Corruption(blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(blur.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Corruption(weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(digital.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption(digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(digital.jpeg_compression, (80, 65, 58, 50, 40)),
    # These four stand beside the fifteen of the benchmark's mean.
    "speckle_noise": Corruption(noise.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(blur.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": Corruption(
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": Corruption(digital.saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), colour=True),
}


def corrupt(dataset: Dataset, name: str, severity: int) -> Dataset:
    """The data set with every image corrupted and stored as uint8, 255 for 1.

    The result is a function of the images, the type and the severity alone: as with published files, every model sees
    the same images.

    Args:
        dataset: images [N, C, H, W].
        name: a key of CORRUPTIONS.
        severity: 1 to 5.
    """
    corruption, device = CORRUPTIONS[name], dataset.images.device
    source = dataset.to("cpu")
    parts = []
    for indices in torch.arange(len(source)).split(_PART):
        draws = Draws(Rng(stream_key(0, f"corruption/{name}"), indices))
        x = corruption.apply(source.batch(indices), corruption.constants[severity - 1], draws)
        parts.append((x.clamp(0, 1) * 255).round().to(torch.uint8))
    return replace(dataset, images=torch.cat(parts).to(device), max_value=255, mapped=False, rows=None)
