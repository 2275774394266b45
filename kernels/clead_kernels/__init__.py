"""Fused operators for contrastive and adversarial contrastive learning, usable alone in anyone's code.

Every function takes ``impl="auto" | "reference" | "triton" | "native"``; ``print(explain())`` says which one runs here.
"""

from ._native import build_info
from .augment import augment
from .contrastive import (
    Cancelled,
    FalseNegatives,
    Temperature,
    cancelled,
    clip_loss,
    info_nce,
    instance_margin,
    nt_xent,
    sigmoid_loss,
    sup_con,
)
from .convolution import conv3x3
from .dispatch import Impl, explain
from .perturb import pgd_step_, project_, random_start_
from .similarity import similarity, similarity_topk

__all__ = [
    "Cancelled",
    "FalseNegatives",
    "Impl",
    "Temperature",
    "augment",
    "build_info",
    "cancelled",
    "clip_loss",
    "conv3x3",
    "explain",
    "info_nce",
    "instance_margin",
    "nt_xent",
    "pgd_step_",
    "project_",
    "random_start_",
    "sigmoid_loss",
    "similarity",
    "similarity_topk",
    "sup_con",
]
