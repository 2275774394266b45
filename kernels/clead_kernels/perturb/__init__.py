"""In-place steps of an attack: ``pgd_step_``, ``random_start_``, ``project_`` (linf, l2 and l1)."""

from .api import pgd_step_, project_, random_start_

__all__ = ["pgd_step_", "project_", "random_start_"]
