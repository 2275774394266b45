"""The contrastive family: the losses of one formula, two beside it, and the rules that say which pairs are what."""

from .api import info_nce, nt_xent, sup_con
from .cancellation import Cancelled, cancelled
from .clip import clip_loss
from .false_negatives import FalseNegatives
from .margin import instance_margin
from .sigmoid import sigmoid_loss
from .temperature import Temperature

__all__ = [
    "Cancelled",
    "FalseNegatives",
    "Temperature",
    "cancelled",
    "clip_loss",
    "info_nce",
    "instance_margin",
    "nt_xent",
    "sigmoid_loss",
    "sup_con",
]
