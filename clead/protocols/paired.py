"""Whether one attack really beats another on the same images."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor

LEVEL = 0.01
LEAST_DIFFERENCE = 0.01


def beats(challenger: Tensor, champion: Tensor) -> bool:
    """Whether ``challenger`` leaves significantly fewer images right than ``champion``.

    One-sided sign test on the images on which the two differ, at p < 0.01, and a difference of at least one point.

    Args:
        challenger: bool [N], images right after the one attack.
        champion: bool [N], right after the other.
    """
    wins, losses = int((champion & ~challenger).sum()), int((challenger & ~champion).sum())
    if wins - losses < LEAST_DIFFERENCE * len(champion) or wins <= losses:
        return False
    return sign_test(wins, losses) < LEVEL


def sign_test(wins: int, losses: int) -> float:
    """P(X >= wins) for X ~ Binomial(wins + losses, 1/2)."""
    total = wins + losses
    return float(Fraction(sum(math.comb(total, k) for k in range(wins, total + 1)), 2**total))
