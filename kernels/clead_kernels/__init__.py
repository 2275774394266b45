"""Fused operators for contrastive and adversarial contrastive learning, usable alone in anyone's code.

Every function takes ``impl="auto" | "reference" | "triton" | "native"``; ``print(explain())`` says which one runs here.
"""

from ._native import build_info
from .contrastive import FalseNegatives, clip_loss, info_nce, nt_xent, sup_con
from .dispatch import Impl, explain
from .perturb import pgd_step_, project_, random_start_
from .similarity import similarity, similarity_topk

__all__ = [
    "FalseNegatives",
    "Impl",
    "build_info",
    "clip_loss",
    "explain",
    "info_nce",
    "nt_xent",
    "pgd_step_",
    "project_",
    "random_start_",
    "similarity",
    "similarity_topk",
    "sup_con",
]
