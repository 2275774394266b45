"""What the data of all figures have in common: what is looked at, and what a file of it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clead.attacks import frozen
from clead.errors import UserError
from clead.protocols.subject import Subject


class NotApplicable(UserError):
    """A figure that does not exist of this model."""


@dataclass(frozen=True, eq=False)
class FigureData:
    """What one figure shows of one model.

    Attributes:
        tensors: numbers by name, on any device.
        facts: how they came to be, by name; what a reader of the figure must know.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, str]


@dataclass(frozen=True, eq=False)
class Look:
    """A model, and how hard to look at it.

    Attributes:
        subject: the model and its images.
        eps: linf radius of the perturbations, pixels in [0, 1]; surfaces reach twice as far.
    """

    subject: Subject
    eps: float

    def images(self, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first images, at most ``most``: x [N, C, H, W] in [0, 1], labels int64 [N], indices int64 [N]."""
        samples = self.subject.samples[:most]
        return self.subject.test.batch(samples), self.subject.test.labels[samples], samples

    @torch.no_grad()
    def encodings(self, most: int) -> dict[str, Tensor]:
        """The encodings [N, d] of the first images by name, ``features`` first, in eval mode."""
        x, _, _ = self.images(most)
        with frozen(self.subject.classifier.module):
            return {
                name: torch.cat([of(part) for part in x.split(self.subject.batch_size)]) for name, of in self.encoders()
            }

    def encoders(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """The encodings of the model by name; NotApplicable where it gives logits only."""
        found = list(self.subject.classifier.encodings.items())
        if not found:
            raise NotApplicable("needs a model with an encoder, got one that gives logits only")
        return found
