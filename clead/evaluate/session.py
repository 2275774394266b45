"""What a command measures: its protocols, and what they share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from clead.attacks.autoattack import available as autoattack_available
from clead.config import TrainConfig
from clead.engine.results import Row
from clead.evaluate.measures import encoding_measures
from clead.evaluate.models import Opened
from clead.protocols.catalogue import AttackSpec, find_attack
from clead.protocols.corruptions import corruption_rows
from clead.protocols.robustness import robustness
from clead.protocols.transfer import Transfer


@dataclass(frozen=True, eq=False)
class Session:
    """One command: what it asks for, and everything it was given.

    Attributes:
        arguments: the command line.
        models: all of them, in order.
    """

    arguments: argparse.Namespace
    models: list[Opened]

    def radii(self, opened: Opened) -> Sequence[float]:
        """``--eps``, or those of the run."""
        return self.arguments.eps or opened.config.evaluation.eps

    @cached_property
    def transfer(self) -> Transfer:
        """The adversarial images of all models."""
        spec = find_attack("pgd20", norm=self.arguments.norm, steps=self.arguments.steps)
        return Transfer([opened.subject for opened in self.models], spec)


def attacks(session: Session, opened: Opened) -> Iterator[Row]:
    """Clean accuracy and the attacks of the command line."""
    yield from robustness(opened.subject, chosen_attacks(opened.config, session.arguments), session.radii(opened))


def transfer(session: Session, opened: Opened) -> Iterator[Row]:
    """PGD-20 made on each model, shown to this one."""
    for eps in session.radii(opened):
        yield from session.transfer.rows(opened.subject, eps)


def corruptions(session: Session, opened: Opened) -> Iterator[Row]:
    """The official files of ``--corruptions``, or our own generator."""
    arguments = session.arguments
    yield from corruption_rows(opened.subject, arguments.corruption_types, arguments.severity, arguments.corruptions)


PROTOCOLS: dict[str, Callable[[Session, Opened], Iterator[Row]]] = {
    "attacks": attacks,
    "transfer": transfer,
    "corruptions": corruptions,
    "metrics": lambda session, opened: encoding_measures(opened),
}


def chosen_attacks(config: TrainConfig, arguments: argparse.Namespace) -> list[AttackSpec]:
    """What ``--attacks`` names; by default the run's own attacks (PGD-20 off linf) and AutoAttack where it is there."""
    names = arguments.attacks
    if names is None:
        names = [*(config.evaluation.attacks if arguments.norm == "linf" else ["pgd20"])]
        names += ["autoattack"] if autoattack_available() else []
    settings = {"norm": arguments.norm, "steps": arguments.steps, "restarts": arguments.restarts}
    specs = [find_attack(name, **settings) for name in names]
    return list({(spec.name, spec.norm): spec for spec in specs}.values())
