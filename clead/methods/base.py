"""What a method is: the heads it needs and its loss on a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from clead.attacks import Constraint, attack
from clead.augment import Augmentation, find_augmentation
from clead.config import AttackConfig, TrainConfig
from clead.methods.inner import Inner
from clead.models import Model, Pass
from clead.rng import Purpose, Rng


@dataclass(frozen=True)
class Batch:
    """What a training step sees.

    Attributes:
        images: [B, C, H, W] in [0, 1], not augmented.
        labels: int64 [B].
        sample_ids: int64 [B], index within the split.
        step: optimiser step of the stage, from 0.
        seed: seed of the run.
        progress: the share of the stage's steps already done, in [0, 1].
        unlabeled: as many images of another data set, labels -1, for methods that ask for one.
        metrics: where a method may put scalars to be logged beside the loss; None on steps that are not logged.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    step: int
    seed: int
    progress: float = 0.0
    unlabeled: Batch | None = None
    metrics: dict[str, Tensor] | None = None

    def split(self, parts: int) -> list[Batch]:
        """Consecutive parts of equal size, each with metrics of its own; their number must divide the batch."""
        if parts == 1:
            return [self]
        tensors = zip(*(x.chunk(parts) for x in (self.images, self.labels, self.sample_ids)), strict=True)
        others = [None] * parts if self.unlabeled is None else self.unlabeled.split(parts)
        metrics = [None if self.metrics is None else dict[str, Tensor]() for _ in range(parts)]
        return [
            replace(self, images=images, labels=labels, sample_ids=ids, unlabeled=other, metrics=own)
            for (images, labels, ids), other, own in zip(tensors, others, metrics, strict=True)
        ]

    def rng(self, purpose: Purpose, view: int = 0) -> Rng:
        """The random stream of this batch for ``purpose``."""
        return Rng.create(self.seed, purpose, self.sample_ids, self.step).view(view)

    def views(self, purpose: Purpose, count: int) -> Rng:
        """The streams of the first ``count`` views, one behind the other."""
        first, *others = (self.rng(purpose, view) for view in range(count))
        return first.cat(*others)


C = TypeVar("C", bound=TrainConfig)


class Method(ABC, Generic[C]):
    """Base of all methods; subclasses set the class attributes and write ``heads`` and ``training_loss``.

    Attributes:
        Config: the frozen configuration, a subclass of TrainConfig.
        paper: where the method comes from.
        ops: the clead_kernels operators it calls, so that ``--impl`` can be checked before training.
        labelled: the loss reads labels.
        accumulates: the loss may be called for several parts of a batch in one step; off where it moves what the method
            keeps from one step to the next.
    """

    Config: ClassVar[type[TrainConfig]]
    paper: ClassVar[str]
    ops: ClassVar[tuple[str, ...]] = ()
    labelled: ClassVar[bool] = False
    accumulates: ClassVar[bool] = True

    def __init__(self, config: C) -> None:
        self.config = config
        self.augment = find_augmentation(config.augment, config.impl)
        self.inner = Inner(config.speed)
        self.features_model: Model | None = None
        """The model of ``features_run``, in eval mode on the device, put here before training."""

    @abstractmethod
    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """New heads on features of width ``feature_dim``."""

    @abstractmethod
    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, scalars whose sum is minimised."""

    def start_epoch(self, model: Model, images: Callable[[Tensor], Tensor], size: int, epoch: int) -> None:
        """Look at the whole training split before epoch ``epoch`` (from 0); most methods need not.

        What is kept from one epoch to the next belongs into ``state_dict``, or a resumed run would miss it.

        Args:
            model: as the previous epoch left it.
            images: indices int64 [B] -> images [B, C, H, W] in [0, 1], not augmented, on the model's device.
            size: number of training images; indices are below it, and are the ``sample_ids`` of batches.
            epoch: the epoch about to start.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the method beside the model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""

    def check_images(self, images: Tensor) -> None:
        """Refuse data before training: a UserError where the settings do not fit its images [1, C, H, W]."""
        for augmentation in self.augmentations:
            augmentation.check_channels(images.shape[1])

    def perturb(
        self,
        model: nn.Module,
        encode: Pass,
        loss: Callable[[Tensor], Tensor],
        x: Tensor,
        config: AttackConfig,
        rng: Rng,
        *,
        training: bool = False,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        scale: Tensor | float = 1.0,
    ) -> Tensor:
        """The inner maximisation: ``config``'s attack on loss(encode(model, x_adv)).

        Batch norm is in eval mode, or with ``training`` uses the statistics of the batch and keeps none. ``bounds``
        is the box of valid images, None for no clipping; ``scale``, broadcastable to x, multiplies radius and step.
        """
        return attack(
            self.inner.objective(model, encode, loss, x, training=training),
            x,
            constraint=Constraint(norm=config.norm, eps=config.eps * scale, bounds=bounds),
            steps=config.steps,
            step_size=config.step_size * scale,
            random_start=config.random_start,
            rng=rng,
            impl=self.config.impl,
        )

    def constant(self, model: nn.Module, encode: Pass, x: Tensor, *, training: bool = False) -> Tensor:
        """encode(model, x) without gradient: what a whole attack compares with; batch norm as in ``perturb``."""
        return self.inner.constant(model, encode, x, training=training)

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """All augmentations it uses."""
        return (self.augment,)

    @property
    def min_samples(self) -> int:
        """The least number of training images it can work with."""
        return 1

    @property
    def unlabeled_data(self) -> str | None:
        """A key of clead.data.DATASETS whose training images every batch brings along; None for most methods."""
        return None

    @property
    def selected_on_test(self) -> tuple[str, ...]:
        """What ``paper_compat`` chooses the best epoch of on the test split, as the official code does.

        Of ``pretrain`` (by the nearest neighbours of the embeddings), the classifier stages and
        ``logistic_regression``; nothing for most methods.
        """
        return ()

    def flags(self, protocol: str) -> list[str]:
        """What the rows of ``protocol`` must say: ``selected_on_test`` where the test split chose an epoch of it."""
        selected = self.selected_on_test if self.config.paper_compat else ()
        chosen = any(what == "pretrain" or protocol.startswith(what) for what in selected)
        return ["selected_on_test"] if chosen else []

    @property
    def features_run(self) -> Path | None:
        """A finished run whose model the method needs, as ``features_model``; None for most methods."""
        return None

    @property
    def op_features(self) -> dict[str, str]:
        """What the calls of its operators need beyond device and dtype, in the names of ``dispatch.resolve``."""
        return {}

    @property
    def adv_branch(self) -> str:
        """The batch-norm branch of adversarial images: ``adv`` where the encoder has it, else the only one."""
        branches = self.config.encoder.bn.branches
        return "adv" if "adv" in branches else branches[0]

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """The batch-norm branches that see images in training; the others keep their initial statistics."""
        return (self.config.encoder.bn.branches[0],)
