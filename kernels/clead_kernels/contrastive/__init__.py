"""The contrastive family: one formula, four front doors, and the rules that say which pairs are what."""

from .api import info_nce, nt_xent, sup_con
from .clip import clip_loss
from .false_negatives import FalseNegatives

__all__ = ["FalseNegatives", "clip_loss", "info_nce", "nt_xent", "sup_con"]
