"""What settings are made of: numbers and lists as the command line has them, and the names they may take."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal, get_args

import tyro

from clead.errors import UserError


def parse_real(text: str) -> float:
    """A float written as a decimal or as a fraction: ``0.03``, ``8/255`` or ``0.25/255``."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(Fraction(numerator) / Fraction(denominator)) if slash else float(text)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"expected a number such as 0.03 or 8/255, got {text!r}") from error
    if not math.isfinite(value):
        raise UserError(f"expected a finite number, got {text!r}")
    return value


Real = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="REAL",
        instance_from_str=lambda args: parse_real(args[0]),
        is_instance=lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
        str_from_instance=lambda value: [repr(float(value))],
    ),
]


def parse_integers(text: str) -> tuple[int, ...]:
    """Comma-separated integers: ``0,1,2``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"expected integers such as 0,1,2, got {text!r}") from error


Integers = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="INT,INT,…",
        instance_from_str=lambda args: parse_integers(",".join(args)),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(part, int) for part in value),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]

Flag = tyro.conf.FlagCreatePairsOff[bool]
"""What is off unless it is asked for; a setting that a file may have turned on needs both forms."""

Executor = Literal["eager", "compile", "graph"]
Impl = Literal["auto", "reference", "triton", "native"]
Stage = Literal["pretrain", "linear_eval", "adv_linear_eval", "full_finetune", "adv_finetune", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
OnNonfinite = Literal["stop", "skip"]
Residence = Literal["auto", "device", "host"]
CLASSIFIER_STAGES = STAGES[1:-1]
"""Those that train a classifier, each from the pre-trained encoder."""


def require(condition: bool, name: str, expected: str, found: object) -> None:
    """Raise a UserError that names a field, what was expected and what was found."""
    if not condition:
        raise UserError(f"{name} must be {expected}, got {found}")
