"""Black-box transfer: adversarial images made on one model, shown to another (ASCL's table 2, rows are targets)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from clead.engine.results import Row
from clead.errors import UserError
from clead.protocols.catalogue import AttackSpec
from clead.protocols.paired import beats
from clead.protocols.robustness import Outcome, attack_all, outcome_row
from clead.protocols.subject import Subject


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
            if not torch.equal(first.images, other.images) or not torch.equal(first.labels, other.labels):
                raise UserError(f"transfer needs models of the same test images: {first.name} and {other.name} differ")
        self._subjects = subjects
        self._spec = spec
        self._found: dict[tuple[int, float], Outcome] = {}

    def rows(self, target: Subject, eps: float) -> Iterator[Row]:
        """One row per source; where the source is the target itself, the attack is a white-box one.

        A source that beats the white-box attack is flagged: the target's own gradients then mislead the attacker.
        """
        clean = target.correct(target.images)
        white = clean & self._attack(self._subjects.index(target), eps).robust
        for index, source in enumerate(self._subjects):
            made = self._attack(index, eps)
            robust = clean & target.correct(made.x_adv)
            flags = ("transfer_beats_white_box",) if source is not target and beats(robust, white) else ()
            outcome = Outcome(robust, flags, made.seconds, made.x_adv)
            key = {**self._spec.key(eps), "attack": f"transfer:{source.key['run']}"}
            yield outcome_row(target, f"{self._spec.name} from {source.key['run']}", outcome, **key)

    def _attack(self, index: int, eps: float) -> Outcome:
        if (index, eps) not in self._found:
            self._found[index, eps] = attack_all(self._subjects[index], self._spec, eps, skip=False)
        return self._found[index, eps]
