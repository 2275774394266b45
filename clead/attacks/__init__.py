"""Adversarial attacks: short loops over ``clead_kernels.perturb``."""

from clead.attacks.objective import Objective, frozen
from clead.attacks.pgd import Constraint, attack
from clead.attacks.runner import Runner

__all__ = ["Constraint", "Objective", "Runner", "attack", "frozen"]
