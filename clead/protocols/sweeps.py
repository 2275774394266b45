"""Accuracy against the steps and against the radius of PGD: the data of the papers' curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from clead.engine.results import Row
from clead.protocols.attempts import AttackSpec
from clead.protocols.catalogue import find_attack
from clead.protocols.robustness import attack_all, clean_outcome, outcome_row
from clead.protocols.subject import Subject

STEPS = (0, 1, 2, 5, 10, 20, 50, 100)
RADII = tuple(k / 255 for k in (1, 2, 4, 6, 8, 12, 16, 24, 32))


def sweep(subject: Subject, cases: Sequence[tuple[AttackSpec, float]]) -> Iterator[Row]:
    """One row, flagged ``sweep``, per attack and radius, of which each may do all that those before it may.

    What an earlier case broke counts as broken in the later ones too, whose ball or steps include it; so the curve
    cannot rise.
    """
    clean = clean_outcome(subject)
    robust = clean.robust
    for spec, eps in cases:
        outcome = attack_all(subject, spec, eps, correct=robust)
        robust = outcome.robust
        yield outcome_row(subject, spec.name, replace(outcome, flags=("sweep", *outcome.flags)), **spec.key(eps))


def eps_cases(norm: str, radii: Sequence[float] = RADII) -> list[tuple[AttackSpec, float]]:
    """PGD-20 at growing radii."""
    return [(find_attack("pgd20", norm=norm), eps) for eps in sorted(radii)]


def steps_cases(norm: str, eps: float, steps: Sequence[int] = STEPS) -> list[tuple[AttackSpec, float]]:
    """PGD at one radius with a growing number of steps of eps/4; 0 is the random start alone."""
    spec = replace(find_attack("pgd20", norm=norm), relative_step=0.25)
    return [(replace(spec, name=f"pgd{count}", steps=count), eps) for count in sorted(steps)]
