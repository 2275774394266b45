"""What the loss makes of positives and negatives, described by a few numbers and names."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from .. import _arguments as arguments

Denominator = Literal["all", "own_positive", "negatives"]
PositivesReduction = Literal["mean", "sum", "inside"]
Metric = Literal["cosine", "euclidean"]


class Form(NamedTuple):
    """The form of one call, as the ops take it; the defaults are L_out, the form every implementation has.

    Attributes:
        denominator: of a positive: ``"all"`` pairs, ``"own_positive"`` and the negatives, or the ``"negatives"``.
        positives_reduction: ``"mean"`` or ``"sum"`` of their logarithms, or the mean ``"inside"`` the logarithm.
        spread: weight of ``-sum log(1 - p_ij)`` over the negatives.
        debias: probability that a negative is a positive; 0 = no correction.
        hard_negative_beta: negatives count by ``exp(beta * s_ij)``; 0 = all the same.
        metric: ``"cosine"`` (the inner product where rows are not normalised) or ``"euclidean"`` (minus the squared
            distance).
    """

    denominator: str = "all"
    positives_reduction: str = "mean"
    spread: float = 0.0
    debias: float = 0.0
    hard_negative_beta: float = 0.0
    metric: str = "cosine"

    def checked(self, normalize: bool) -> Form:
        """This form; raises ValueError or TypeError where a value or a combination is wrong."""
        if not any(isinstance(value, Tensor) for value in self) and self == _DEFAULT:
            return self
        arguments.check_choice("denominator", self.denominator, ("all", "own_positive", "negatives"))
        arguments.check_choice("positives_reduction", self.positives_reduction, ("mean", "sum", "inside"))
        arguments.check_number("spread", self.spread, 0.0)
        arguments.check_number("debias", self.debias, 0.0, 1.0)
        arguments.check_number("hard_negative_beta", self.hard_negative_beta, 0.0)
        arguments.check_choice("metric", self.metric, ("cosine", "euclidean"))
        others = self._replace(spread=0.0, metric="cosine").features()
        if self.spread and others:
            found = ", ".join(f"{name}={value}" for name, value in others.items())
            raise ValueError(f"spread is a term of the loss without other options, got {found}")
        if self.debias and not (normalize and self.metric == "cosine"):
            raise ValueError(
                f"debias needs normalised rows and cosines, got normalize={normalize} and metric={self.metric!r}"
            )
        return self

    @property
    def reweighted(self) -> bool:
        """Whether the mass of the negatives is another one than their sum."""
        return self.debias != 0.0 or self.hard_negative_beta != 0.0

    def features(self) -> dict[str, str]:
        """What this form asks of an implementation beyond the default, as ``dispatch.resolve`` has it."""
        if self == _DEFAULT:
            return {}
        usual = _DEFAULT._asdict()  # torch 2.11 traces no difference of two dictionaries' items
        asked = [(name, value) for name, value in sorted(self._asdict().items()) if value != usual[name]]
        return {name: value if isinstance(value, str) else "yes" for name, value in asked}


_DEFAULT = Form()

SCHEMA = "str denominator, str positives_reduction, float spread, float debias, float hard_negative_beta, str metric"
"""The fields of ``Form`` in order, as op arguments."""
