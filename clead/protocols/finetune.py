"""A classifier on a pre-trained encoder: linear or with the encoder, on clean or on attacked images.

The four stages are what the papers call standard and adversarial linear fine-tuning (SLF, ALF) and standard and
adversarial full fine-tuning (SFF, AFF).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.attacks import Constraint, attack, frozen
from clead.augment import find_augmentation
from clead.config import AdvFinetuneConfig, FinetuneConfig, Impl, OnNonfinite, SpeedConfig, Stage
from clead.data import Dataset, Splits
from clead.engine.loop import Fit
from clead.losses import kl_divergence, trades_loss
from clead.methods.base import Batch
from clead.methods.inner import Inner
from clead.models import LinearHead, Model, Pass, initialise
from clead.protocols.encode import encode
from clead.rng import Rng

WITH_ENCODER: tuple[Stage, ...] = ("full_finetune", "adv_finetune")


@dataclass(frozen=True)
class Classification:
    """The loss of a step, and the accuracy by which epochs are compared.

    Attributes:
        model: with the ``classifier`` to train.
        config: augmentation, and for attacked images loss and attack.
        branch: batch-norm branch of every image.
        with_encoder: the encoder is trained too.
        impl: implementation of the operators.
        inner: how attacks see the model; by default a copy with batch norm folded, the same up to rounding.
    """

    model: Model
    config: FinetuneConfig
    branch: str
    with_encoder: bool
    impl: Impl
    inner: Inner = field(default_factory=lambda: Inner(SpeedConfig()))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """CE(f(x), y), CE(f(x'), y) or TRADES' CE(f(x), y) + beta KL(f(x) || f(x')) on augmented images."""
        x = find_augmentation(self.config.augment, self.impl)(batch.images, batch.rng("augment"))
        if not isinstance(self.config, AdvFinetuneConfig):
            return {"ce": F.cross_entropy(self.logits(x), batch.labels)}
        x_adv = self.attacked(x, batch.labels, self.config, batch.rng("attack"))
        if self.config.loss == "ce":
            return {"ce_adv": F.cross_entropy(self.logits(x_adv), batch.labels)}
        return trades_loss(self.logits(x), self.logits(x_adv), batch.labels, beta=self.config.beta)

    def logits(self, x: Tensor) -> Tensor:
        """[B, num_classes], with gradients for what is trained and for nothing else."""
        with torch.set_grad_enabled(self.with_encoder):
            features = self.model.features(x, branch=self.branch)
        logits: Tensor = self.model.heads["classifier"](features)
        return logits

    def attacked(self, x: Tensor, labels: Tensor, config: AdvFinetuneConfig, rng: Rng) -> Tensor:
        """The images [B, C, H, W] that maximise the cross-entropy or TRADES' divergence, batch norm in eval mode."""

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="none")

        loss: Callable[[Tensor], Tensor] = cross_entropy
        if config.loss == "trades":
            with frozen(self.model), torch.no_grad():
                loss = partial(kl_divergence, logits=self.model.logits(x, branch=self.branch))

        return attack(
            self.inner.objective(self.model, Pass("logits", self.branch), loss, x, training=False),
            x,
            constraint=Constraint(config.attack.norm, config.attack.eps),
            steps=config.attack.steps,
            step_size=config.attack.step_size,
            random_start=config.attack.random_start,
            rng=rng,
            impl=self.impl,
        )

    def accuracy(self, dataset: Dataset, seed: int, batch_size: int = 500) -> float:
        """The share classified correctly; under the attack of training where there is one."""
        correct = 0
        samples = torch.arange(len(dataset), device=dataset.labels.device)
        for part in samples.split(batch_size):
            x, labels = dataset.batch(part), dataset.labels[part]
            if isinstance(self.config, AdvFinetuneConfig):
                x = self.attacked(x, labels, self.config, Rng.create(seed, "eval_attack", part))
            with torch.no_grad():
                correct += int((self.model.logits(x, branch=self.branch).argmax(1) == labels).sum())
        return correct / len(dataset)


def loss_of(
    model: Model, stage: Stage, config: FinetuneConfig, branch: str, impl: Impl, *, fold: bool = True
) -> tuple[nn.Module, Callable[[Batch], dict[str, Tensor]]]:
    """What a stage trains of a model with a classifier, and the terms of its loss on a batch; see ``fine_tuning``."""
    return _trained_by(_task(model, stage, config, branch, impl, fold), stage)


def _task(model: Model, stage: Stage, config: FinetuneConfig, branch: str, impl: Impl, fold: bool) -> Classification:
    return Classification(model, config, branch, stage in WITH_ENCODER, impl, Inner(SpeedConfig(fold=fold)))


def _trained_by(task: Classification, stage: Stage) -> tuple[nn.Module, Callable[[Batch], dict[str, Tensor]]]:
    head = task.model.heads["classifier"]

    def of_features(batch: Batch) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(head(batch.images), batch.labels)}

    trained = nn.ModuleList([task.model.encoder, head]) if task.with_encoder else head
    return trained, of_features if on_features(stage, task.config) else task.loss


def on_features(stage: Stage, config: FinetuneConfig) -> bool:
    """Whether the encoder is frozen and sees the same images in every epoch: each is encoded once."""
    return stage == "linear_eval" and config.augment == "none"


def fine_tuning(
    model: Model,
    stage: Stage,
    config: FinetuneConfig,
    splits: Splits,
    *,
    branch: str,
    seed: int,
    impl: Impl,
    checkpoint_every: int,
    meta: dict[str, object],
    checkpoint_minutes: float = 0.0,
    on_nonfinite: OnNonfinite = "stop",
    on_test: bool = False,
    prefetch: int = 0,
    fold: bool = True,
    features: Tensor | None = None,
) -> Fit:
    """``model.heads["classifier"]``, in the stages of WITH_ENCODER together with the encoder, to be trained by ``fit``.

    A frozen encoder is in eval mode; if the images are neither augmented nor attacked, each is encoded once, here.

    Args:
        model: its classifier is replaced by a new one, as wide as the data has classes.
        stage: which of the four.
        config: its settings; an AdvFinetuneConfig for the adversarial ones.
        splits: trained on ``train``; the best epoch is chosen on ``val``.
        branch: batch-norm branch.
        seed: seed of the run.
        impl: implementation of the perturbation operators.
        checkpoint_every: epochs between checkpoints.
        meta: what a checkpoint says of the model.
        checkpoint_minutes: minutes after which one is due in any case; 0 goes by epochs only.
        on_nonfinite: what a loss or gradient that is not finite does.
        on_test: the best epoch is chosen on ``test``, whatever ``config.select`` says.
        prefetch: batches that a thread fetches before their step, where images are fetched.
        fold: attack a copy of the model in which batch norm is folded, the same up to rounding.
        features: [N, feature_dim] to take for what the encoder makes of the training images; None encodes them.
    """
    model.eval()
    train = splits.train
    head = LinearHead(model.encoder.feature_dim, splits.num_classes, zero_init=config.zero_init)
    head.to(train.labels.device)
    initialise(head, seed)
    model.heads["classifier"] = head
    task = _task(model, stage, config, branch, impl, fold)
    trained, loss = _trained_by(task, stage)
    images: Callable[[Tensor], Tensor] = train.batch
    fetched = train.remote
    if on_features(stage, config):
        encoded = encode(model, train, branch=branch) if features is None else features
        images, fetched = encoded.__getitem__, False
    chosen_on = splits.test if on_test else splits.val
    return Fit(
        stage=stage,
        model=model,
        trained=trained,
        loss=loss,
        images=images,
        labels=train.labels,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        seed=seed,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        on_nonfinite=on_nonfinite,
        prefetch=prefetch if fetched else 0,
        meta=meta,
        score=(lambda: task.accuracy(chosen_on, seed)) if on_test or config.select == "best_val" else None,
        scored_on="test" if on_test else "val",
    )
