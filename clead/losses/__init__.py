"""Losses as pure functions over ``clead_kernels`` that read as their equation."""

from clead.losses.clead import clead_loss
from clead.losses.margin import instance_margin, margin
from clead.losses.mart import mart_loss
from clead.losses.trades import kl_divergence, trades_loss

__all__ = ["clead_loss", "instance_margin", "kl_divergence", "margin", "mart_loss", "trades_loss"]
