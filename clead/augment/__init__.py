"""Augmentation of whole batches on their device; every image has its own counter-based random numbers."""

import difflib
from dataclasses import replace

from clead.augment.base import Augmentation, Transform
from clead.augment.color import ColorJitter, GaussianBlur, RandomBrightness, RandomGrayscale
from clead.augment.frequency import high_pass
from clead.augment.geometry import HorizontalFlip, RandomAffine, RandomCrop, RandomResizedCrop
from clead.errors import UserError
from clead_kernels import Impl

_ALL = (
    Augmentation("none"),
    # Digits read the other way round, cropped or tinted are no digits any more.
    Augmentation("digits", (RandomAffine(shift=1, rotation=10, scale=(0.9, 1.1)), RandomBrightness(0.1))),
    # Supervised training on CIFAR.
    Augmentation("crop_flip", (RandomCrop(padding=4), HorizontalFlip())),
    # C-LEAD's "random cropping and horizontal flipping".
    Augmentation("rrc_flip", (RandomResizedCrop(scale=(0.2, 1.0)), HorizontalFlip())),
    Augmentation(
        "simclr",
        (
            RandomResizedCrop(scale=(0.08, 1.0)),
            HorizontalFlip(),
            ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            RandomGrayscale(0.2),
        ),
    ),
    # SimCLR's for ImageNet; on CIFAR it leaves the blur out.
    Augmentation(
        "simclr_imagenet",
        (
            RandomResizedCrop(scale=(0.08, 1.0)),
            HorizontalFlip(),
            ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            RandomGrayscale(0.2),
            GaussianBlur(p=0.5, sigma=(0.1, 2.0)),
        ),
    ),
    Augmentation(
        "supcon",
        (
            RandomResizedCrop(scale=(0.2, 1.0)),
            HorizontalFlip(),
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            RandomGrayscale(0.2),
        ),
    ),
    # CLAE's Plain and UEL: the colours always change, the hue by up to .4 too.
    Augmentation(
        "instance",
        (
            RandomResizedCrop(scale=(0.2, 1.0)),
            ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0),
            RandomGrayscale(0.2),
            HorizontalFlip(),
        ),
    ),
    Augmentation(
        "rocl",
        (
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            RandomGrayscale(0.2),
            HorizontalFlip(),
            RandomResizedCrop(scale=(0.08, 1.0)),
        ),
    ),
    # ACL's resizing is bicubic, ours bilinear.
    Augmentation(
        "acl",
        (
            RandomResizedCrop(scale=(0.1, 1.0)),
            HorizontalFlip(),
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            RandomGrayscale(0.2),
        ),
    ),
)

AUGMENTATIONS: dict[str, Augmentation] = {augmentation.name: augmentation for augmentation in _ALL}

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ColorJitter",
    "GaussianBlur",
    "HorizontalFlip",
    "RandomAffine",
    "RandomBrightness",
    "RandomCrop",
    "RandomGrayscale",
    "RandomResizedCrop",
    "Transform",
    "find_augmentation",
    "high_pass",
]


def find_augmentation(name: str, impl: Impl = "auto") -> Augmentation:
    """The augmentation called ``name``; a UserError names the nearest one.

    ``impl`` is which implementation computes it: "native" is the C++ on a CPU and, as there is no CUDA C++, what "auto"
    takes on a GPU.
    """
    if name in AUGMENTATIONS:
        return replace(AUGMENTATIONS[name], impl="auto" if impl == "native" else impl)
    near = difflib.get_close_matches(name, AUGMENTATIONS, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown augmentation {name!r}; the nearest is {near!r}, of {', '.join(AUGMENTATIONS)}")
