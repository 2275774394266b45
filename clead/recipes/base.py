"""What a recipe is."""

from __future__ import annotations

from dataclasses import dataclass

from clead.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A configuration worth a name.

    Attributes:
        name: ``<method>_<data>``, with a suffix where there are several.
        method: key of METHODS.
        config: every setting.
        source: where the settings come from.
        paper: the paper's numbers for this row; empty when the paper has none.
    """

    name: str
    method: str
    config: TrainConfig
    source: str
    paper: str = ""

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"python -m clead.train {self.method} --recipe {self.name}"
