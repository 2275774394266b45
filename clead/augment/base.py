"""How transforms are chained and fed with random numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from clead.errors import UserError
from clead.rng import Rng
from clead_kernels import Impl, augment

Step = tuple[str, Tensor]
"""A step of ``clead_kernels.augment``: its name, and its parameters float64 [parameters, B]."""


class Transform(Protocol):
    """One random change of a batch of images, a pure function of the images and of uniform numbers."""

    @property
    def draws(self) -> int:
        """Uniform numbers wanted per image."""

    @property
    def color(self) -> bool:
        """Makes sense for red, green and blue only."""

    def faded(self, strength: float) -> Transform:
        """The same at a share ``strength`` in [0, 1] of its strength, with as many draws."""

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] and u float64 [draws, B] in [0, 1) -> images of the same shape."""


class Fused:
    """Base of the transforms that are a step of ``clead_kernels.augment``; those in a row are done in one pass."""

    def step(self, u: Tensor, height: int, width: int) -> Step:
        """What to do to images of this size, from uniform numbers float64 [draws, B]."""
        raise NotImplementedError

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """The step alone; see ``Transform``."""
        return augment(images, [self.step(u.to(torch.float64), *images.shape[2:])], clip=False)


@dataclass(frozen=True)
class Augmentation:
    """Transforms in order, every image with its own random numbers.

    Numbers belong to (key, step, image, view, draw), so an image's result does not depend on the batch around it. The
    transforms take consecutive ranges of draws: one that is appended leaves the numbers of those before it alone.

    Attributes:
        name: for messages.
        transforms: applied in this order.
        impl: implementation of ``clead_kernels.augment``.
    """

    name: str
    transforms: tuple[Transform, ...] = ()
    impl: Impl = "auto"

    def check_channels(self, channels: int) -> None:
        """Raise a UserError if images with ``channels`` channels cannot be augmented this way."""
        if channels != 3 and any(transform.color for transform in self.transforms):
            raise UserError(
                f"augmentation {self.name!r} changes colours: expected images with 3 channels, got {channels}"
            )

    def faded(self, strength: float) -> Augmentation:
        """All transforms at a share ``strength`` in [0, 1] of their strength; flips have none and stay."""
        return replace(self, transforms=tuple(transform.faded(strength) for transform in self.transforms))

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        """Augment a batch.

        Args:
            images: float32 or float64 [B, C, H, W] in [0, 1]; left unchanged.
            rng: stream with one sample id per image, on the images' device; with V times as many, of V views of the
                batch one behind the other, all views are made at once.

        Returns:
            Images [V * B, C, H, W] of the same dtype and range.
        """
        if images.dim() != 4 or images.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"images must be float32 or float64 [B, C, H, W], got {images.dtype} {list(images.shape)}")
        views, rest = divmod(len(rng.sample_ids), max(1, len(images)))
        if rest or (len(images) and not views):
            raise ValueError(f"rng must name {len(images)} samples, one per image, got {len(rng.sample_ids)}")
        self.check_channels(images.shape[1])
        if views > 1 and not (self.transforms and isinstance(self.transforms[0], Fused)):
            images = images.repeat(views, 1, 1, 1)
        if not self.transforms:
            return images
        draws = [transform.draws for transform in self.transforms]
        # float64, so that sines and roots rounded to float32 agree across devices; [draws, B], so that each is
        # contiguous and takes the same vector code for any batch size.
        uniforms = rng.uniform(sum(draws)).to(torch.float64).t().contiguous()
        todo = zip(self.transforms, uniforms.split_with_sizes(draws), strict=True)
        for fused, group in itertools.groupby(todo, lambda one: isinstance(one[0], Fused)):
            if fused:
                steps = [transform.step(u, *images.shape[2:]) for transform, u in group if isinstance(transform, Fused)]
                images = augment(images, steps, impl=self.impl)
            else:
                for transform, u in group:
                    images = transform(images, u).clamp(0, 1)
        return images
