"""Natural corruptions: the official CIFAR-10-C files, or our own generator in their style.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019,
arXiv:1903.12261. The constants are those published with CIFAR-10-C, per severity 1 to 5; lengths are pixels of 32 x 32
images. The implementations are ours: edges are repeated, motion blur samples a line bilinearly, fog is a sum of random
octaves, and frost, which there is cut from photographs, is a synthetic texture. Numbers from the generator compare
models with each other, not with published tables.
"""

from clead.protocols.corruptions.evaluation import corruption_rows
from clead.protocols.corruptions.generator import CORRUPTIONS, corrupt
from clead.protocols.corruptions.official import read_official

__all__ = ["CORRUPTIONS", "corrupt", "corruption_rows", "read_official"]
