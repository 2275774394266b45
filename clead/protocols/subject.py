"""What is evaluated: a model, the images it is shown, and what all of its rows share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clead.attacks import frozen
from clead.config import Impl
from clead.data import Dataset
from clead.errors import UserError
from clead.models import Model, Pass, View


@dataclass(frozen=True, eq=False)
class Classifier:
    """A module and the logits [B, K] it gives images [B, C, H, W] in [0, 1].

    Attributes:
        module: what must not change while it is looked at.
        logits: images -> logits, with gradients.
        encodings: images -> encodings [B, d] by name: ``features``, and ``embeddings`` where there is a projector.
        temperature: of the contrastive loss on the last of the encodings.
    """

    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    encodings: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    temperature: float = 0.5

    @classmethod
    def of(cls, model: Model, branch: str, temperature: float = 0.5) -> Classifier:
        """The classifier head of ``model`` on its encoder, through the batch-norm branch ``branch``."""
        encodings = {"features": lambda x: model.features(x, branch=branch)}
        if "projector" in model.heads:
            encodings["embeddings"] = lambda x: model.embed(x, branch=branch)
        return cls(model, partial(Pass("logits", branch), model), encodings, temperature)

    def folded(self) -> Classifier:
        """The same up to rounding, with batch norm folded into the layers before it: to find perturbations faster.

        Only for a model of ours whose logits nobody has changed; otherwise the classifier itself.
        """
        if not (isinstance(self.logits, partial) and isinstance(self.logits.func, Pass)):
            return self
        view = View(self.module, training=False)
        view.refresh(self.logits.func.branches)
        return replace(self, module=view.module, logits=partial(self.logits.func, view.module))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The logits [B, K] of x [B, C, H, W] in eval mode, without gradients; a UserError if one is not finite."""
        with frozen(self.module):
            logits = self.logits(x)
        if not bool(logits.isfinite().all()):
            bad = int((~logits.isfinite()).any(1).sum())
            raise UserError(f"the model must give finite logits, got NaN or infinity for {bad} of {len(x)} images")
        return logits


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under evaluation.

    Attributes:
        name: for people, unique in one evaluation.
        classifier: what is attacked.
        test: the split, on the model's device.
        samples: int64 [N], the indices that are looked at.
        key: what its rows share: run, model, protocol, bn_branch, dataset, split, seed, dtype.
        seed: of the random starts.
        impl: implementation of the perturbation operators.
        batch_size: images attacked at once.
        suspicions: what makes all of its numbers doubtful, see ``clead.protocols.sanity``.
        on_batch: called with the number of images after every batch that is attacked.
    """

    name: str
    classifier: Classifier
    test: Dataset
    samples: Tensor
    key: dict[str, Any]
    seed: int
    impl: Impl = "auto"
    batch_size: int = 500
    suspicions: tuple[str, ...] = ()
    on_batch: Callable[[int], None] = lambda images: None

    def __post_init__(self) -> None:
        labels, classes = self.labels, len(self.test.classes)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(f"{self.test.name}: labels must be in 0 … {classes - 1}, found {labels.unique().tolist()}")

    @property
    def images(self) -> Tensor:
        """float32 [N, C, H, W] in [0, 1]."""
        return self.test.batch(self.samples)

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.test.labels[self.samples]

    @property
    def flags(self) -> list[str]:
        """What every row must say: ``subset`` unless the whole split is looked at, and the suspicions."""
        return [*(["subset"] if len(self.samples) < len(self.test) else []), *self.suspicions]

    def correct(self, images: Tensor) -> Tensor:
        """bool [N]: which of ``images`` [N, C, H, W] the model puts into their class."""
        parts = [self.classifier.predict(x) for x in images.split(self.batch_size)]
        logits = torch.cat(parts)
        if logits.shape[1] != len(self.test.classes):
            raise UserError(
                f"expected logits of the {len(self.test.classes)} classes of {self.test.name}, found {logits.shape[1]}"
            )
        return logits.argmax(1) == self.labels
