"""3x3 convolutions, of which most convolutional encoders are made."""

from .api import PackedConv3x3, conv3x3, served

__all__ = ["PackedConv3x3", "conv3x3", "served"]
