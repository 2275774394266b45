"""Losses as pure functions over ``clead_kernels`` that read as their equation."""

from clead.losses.adversarial import kl_divergence, mart_loss, trades_loss
from clead.losses.ascl import ascl_loss, instance_loss
from clead.losses.cancelled import cancelled_nt_xent
from clead.losses.clead import Negatives, clead_loss, clead_term
from clead.losses.margin import margin
from clead.losses.uel import uel_loss

__all__ = [
    "Negatives",
    "ascl_loss",
    "cancelled_nt_xent",
    "clead_loss",
    "clead_term",
    "instance_loss",
    "kl_divergence",
    "margin",
    "mart_loss",
    "trades_loss",
    "uel_loss",
]
