"""Black-box transfer: adversarial images made on one model, shown to another (ASCL's table 2, rows are targets)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from clead.engine.results import Row
from clead.errors import UserError
from clead.protocols.attempts import AttackSpec
from clead.protocols.catalogue import CATALOGUE
from clead.protocols.paired import beats
from clead.protocols.robustness import Outcome, attack_all, outcome_row
from clead.protocols.subject import Subject


def same_images(one: Subject, other: Subject) -> bool:
    """Whether two models are shown the same images with the same labels."""
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


class Transfer:
    """The adversarial images of every source, made once and shown to every target.

    Args:
        subjects: the models, all on the same images.
        spec: the white-box attack on the source; one that leaves no image as it is.

    Raises:
        UserError: the models were not given the same images, or ``spec`` is from the library.
    """

    def __init__(self, subjects: Sequence[Subject], spec: AttackSpec) -> None:
        if spec.library or spec.attack == "cw_l2":
            raise UserError(f"transfer needs an attack that moves every image, such as pgd20, got {spec.name}")
        first = subjects[0]
        for other in subjects[1:]:
            if not same_images(first, other):
                raise UserError(f"transfer needs models of the same test images: {first.name} and {other.name} differ")
        self._subjects = {subject.key["run"]: subject for subject in subjects}
        self._spec = spec
        self._found: dict[tuple[str, float], Outcome] = {}

    def rows(self, target: Subject, eps: float) -> Iterator[Row]:
        """One row per source; where the source is the target itself, the attack is a white-box one.

        A source that beats ``spec`` and its form on the margin together is flagged: the target's own gradients then
        mislead the attacker.
        """
        clean, own = target.correct(target.images), target.key["run"]
        margin = replace(self._spec, perturb=CATALOGUE["cw"].perturb)
        white = clean & self._attack(own, eps).robust & attack_all(target, margin, eps, correct=clean).robust
        for source in self._subjects:
            made = self._attack(source, eps)
            robust = clean & target.correct(made.x_adv)
            flags = ("transfer_beats_white_box",) if source != own and beats(robust, white) else ()
            outcome = Outcome(robust, flags, made.seconds, made.x_adv)
            key = {**self._spec.key(eps), "attack": f"transfer:{source}"}
            yield outcome_row(target, f"{self._spec.name} from {source}", outcome, **key)

    def _attack(self, source: str, eps: float) -> Outcome:
        if (source, eps) not in self._found:
            self._found[source, eps] = attack_all(self._subjects[source], self._spec, eps, skip=False)
        return self._found[source, eps]
