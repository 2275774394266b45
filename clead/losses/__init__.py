"""Losses as pure functions over ``clead_kernels`` that read as their equation."""

from clead.losses.ascl import ascl_loss
from clead.losses.cancellation import cancellation
from clead.losses.clead import Negatives, clead_loss, clead_term
from clead.losses.margin import instance_margin, margin
from clead.losses.mart import mart_loss
from clead.losses.trades import kl_divergence, trades_loss

__all__ = [
    "Negatives",
    "ascl_loss",
    "cancellation",
    "clead_loss",
    "clead_term",
    "instance_margin",
    "kl_divergence",
    "margin",
    "mart_loss",
    "trades_loss",
]
