"""Encoders, heads and batch norm with branches."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial

from clead.errors import UserError
from clead.models.batch_norm import BatchNormConfig, Branch, BranchBatchNorm1d, BranchBatchNorm2d
from clead.models.cached import cached_encoding
from clead.models.digits import DigitsEncoder
from clead.models.encoder import Encoder, torchvision_state_dict
from clead.models.init import initialise
from clead.models.model import Model
from clead.models.passes import Pass
from clead.models.projector import LinearHead, Projector
from clead.models.resnet import ResNet
from clead.models.view import View

__all__ = [
    "ENCODERS",
    "BatchNormConfig",
    "Branch",
    "BranchBatchNorm1d",
    "BranchBatchNorm2d",
    "DigitsEncoder",
    "Encoder",
    "LinearHead",
    "Model",
    "Pass",
    "Projector",
    "ResNet",
    "View",
    "build_encoder",
    "cached_encoding",
    "initialise",
    "torchvision_state_dict",
]

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "digits_cnn": DigitsEncoder,
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "resnet18_imagenet": partial(ResNet, 18, stem="imagenet"),
    "resnet50_imagenet": partial(ResNet, 50, stem="imagenet"),
}


def build_encoder(
    name: str,
    *,
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    bn: BatchNormConfig,
    width: int | None = None,
) -> Encoder:
    """The encoder called ``name``.

    Its weights still depend on torch's global generator; ``initialise`` makes them a function of the seed.

    Args:
        name: a key of ENCODERS.
        in_channels: channels of the images.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        bn: the batch-norm branches.
        width: channels of the first convolution; default the encoder's own.

    Returns:
        A module that takes images in [0, 1] to features [B, feature_dim].

    Raises:
        UserError: unknown name (the message has the nearest), or a mean or std that does not fit the channels.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown encoder {name!r}; the nearest is {near!r}, of {', '.join(ENCODERS)}")
    if width is not None and width < 1:
        raise UserError(f"width must be at least 1, got {width}")
    options = {} if width is None else {"width": width}
    return ENCODERS[name](in_channels=in_channels, mean=mean, std=std, bn=bn, **options)
