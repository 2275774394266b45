"""Augmentation of whole batches of images, all steps of an image in one pass."""

from .api import augment

__all__ = ["augment"]
