"""The attacks of an evaluation by name: what each maximises, how long, with which step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from clead.attacks.autoattack import PARTS, load_library
from clead.errors import UserError
from clead.protocols.attempts import (
    AttackSpec,
    autoattack_attempt,
    contrastive_attempt,
    cw_attempt,
    cw_l2_attempt,
    mifgsm_attempt,
    one_step_attempt,
    pgd_attempt,
    rfgsm_attempt,
    targeted_attempt,
)

NORMS = ("linf", "l2", "l1")

# PGD's step of eps / 4 is 2/255 at 8/255; in l2 and l1 2.5 eps / steps, after Madry et al.
_CATALOGUE = (
    AttackSpec("fgsm", "fgsm", one_step_attempt, steps=1, relative_step=1.0, restarts=1),
    AttackSpec("rfgsm", "rfgsm", rfgsm_attempt, steps=1, relative_step=0.5, restarts=1),
    AttackSpec("ffgsm", "ffgsm", one_step_attempt, steps=1, relative_step=1.25, random_start=True, restarts=1),
    AttackSpec("pgd", "pgd", pgd_attempt, steps=20, relative_step=0.25, random_start=True, restarts=1),
    AttackSpec("cw", "cw_linf", cw_attempt, steps=20, relative_step=0.25, random_start=True, restarts=1),
    AttackSpec("cw_l2", "cw_l2", cw_l2_attempt, norm="l2", steps=200),
    AttackSpec("mifgsm", "mifgsm", mifgsm_attempt, steps=10, relative_step=0.1, restarts=1),
    AttackSpec(
        "targeted",
        "pgd_targeted",
        targeted_attempt,
        steps=20,
        relative_step=0.25,
        random_start=True,
        restarts=1,
        targets=True,
    ),
    AttackSpec(
        "contrastive",
        "contrastive",
        contrastive_attempt,
        steps=20,
        relative_step=0.25,
        random_start=True,
        restarts=1,
        joint=True,
    ),
    AttackSpec("apgd_ce", "apgd_ce", autoattack_attempt, steps=100, library=True),
    AttackSpec("apgd_dlr", "apgd_dlr", autoattack_attempt, steps=100, library=True),
    AttackSpec("apgd_t", "apgd_t", autoattack_attempt, steps=100, library=True),
    AttackSpec("fab", "fab", autoattack_attempt, steps=100, library=True),
    AttackSpec("square", "square", autoattack_attempt, steps=5000, library=True),
    AttackSpec("autoattack", "autoattack", autoattack_attempt, library=True),
)
assert {spec.attack for spec in _CATALOGUE if spec.library} == set(PARTS)
CATALOGUE = {spec.name: spec for spec in _CATALOGUE}
_COUNTED = {"pgd", "mifgsm", "targeted", "cw", "contrastive"}  # take their number of steps in the name: pgd20
_ONLY = {"fgsm": ("linf", "l2"), "rfgsm": ("linf",), "ffgsm": ("linf",), "cw": ("linf",), "cw_l2": ("l2",)}


def find_attack(text: str, *, norm: str = "linf", steps: int | None = None, restarts: int | None = None) -> AttackSpec:
    """The attack called ``text``: a key of CATALOGUE, with a number of steps (``pgd40``), with a norm (``pgd40_l2``).

    Args:
        text: the name.
        norm: the ball, where the name has none.
        steps: of pgd, cw, mifgsm, targeted and contrastive, where the name has none.
        restarts: of the attacks with a random start (targeted has its targets instead).

    Raises:
        UserError: the name is unknown, or the attack does not exist in this norm.
    """
    name, digits, suffix = text, None, "l2" if text == "cw_l2" else None
    found = re.fullmatch(r"(.+?)([1-9]\d{0,3})?(?:_(linf|l2|l1))?", text)
    if text not in CATALOGUE and found:
        name, digits, suffix = found.groups()
    if name not in CATALOGUE or (digits and name not in _COUNTED):
        raise UserError(f"unknown attack {text!r}; expected one of {', '.join(CATALOGUE)}, or pgdN such as pgd20")
    spec, norm = CATALOGUE[name], suffix or norm
    if norm not in _ONLY.get(name, NORMS):
        raise UserError(f"the attack {name} exists in {' and '.join(_ONLY[name])}, got the norm {norm!r}")
    spec = replace(spec, norm=norm)
    if restarts and (spec.random_start or name == "rfgsm") and not spec.targets:
        spec = replace(spec, restarts=restarts)
    return _with_steps(spec, int(digits) if digits else steps or spec.steps or 1) if name in _COUNTED else spec


def _with_steps(spec: AttackSpec, steps: int) -> AttackSpec:
    relative = spec.relative_step if spec.norm == "linf" else 2.5 / steps
    # Fewer than four steps must still be able to cross the ball; MI-FGSM's paper divides it evenly.
    relative = 1.0 / steps if spec.attack == "mifgsm" else max(relative or 0.0, 1.0 / steps)
    name = "cw" if spec.name == "cw" and steps == 20 else f"{spec.name}{steps}"
    return replace(spec, name=name, steps=steps, relative_step=relative)


def find_attacks(
    names: Iterable[str], *, norm: str = "linf", steps: int | None = None, restarts: int | None = None
) -> list[AttackSpec]:
    """``find_attack`` for every name, each attack once.

    Raises:
        UserError: as ``find_attack``; or one needs the library, which is absent or not the one that was checked.
    """
    specs = [find_attack(name, norm=norm, steps=steps, restarts=restarts) for name in names]
    if any(spec.library for spec in specs):
        load_library()  # or what is wrong with it would show after the first attacks
    return list({(spec.name, spec.norm): spec for spec in specs}.values())
