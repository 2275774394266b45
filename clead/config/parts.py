"""The nested settings: attacks, optimisers, models, classifiers, measurements, speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from clead.config.values import Executor, Real, require
from clead.models.batch_norm import BatchNormConfig


@dataclass(frozen=True)
class AttackConfig:
    """The inner maximisation of training."""

    eps: Real = 8 / 255
    """Radius of the perturbation, pixels in [0, 1]."""
    step_size: Real = 2 / 255
    """Step, pixels in [0, 1]."""
    steps: int = 10
    """Number of gradient steps."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    random_start: bool = True
    """Start from a uniform point of the ball."""

    def __post_init__(self) -> None:
        require(self.eps >= 0, "attack.eps", "at least 0", self.eps)
        pixels = self.norm != "linf" or self.eps <= 1
        require(pixels, "attack.eps", "at most 1, the range of a pixel, in linf (8/255 for 8 of 255)", self.eps)
        require(self.step_size >= 0, "attack.step_size", "at least 0", self.step_size)
        require(self.steps >= 0, "attack.steps", "at least 0", self.steps)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["sgd", "adam", "adamw", "lars"] = "sgd"
    """sgd; adam, and adamw with its decoupled weight decay, with torch's betas; lars: steps scaled to every tensor."""
    lr: Real = 0.1
    """Peak learning rate."""
    momentum: Real = 0.9
    """Momentum of sgd and lars; adam and adamw ignore it."""
    weight_decay: Real = 0.0
    """L2 penalty on every parameter."""
    decay_vectors: bool = True
    """Whether biases and batch-norm weights get weight decay and lars's scaling too."""
    trust: Real = 1e-3
    """LARS: length of a step over length of the weights, at learning rate 1."""
    schedule: Literal["cosine", "constant", "step", "cyclic"] = "cosine"
    """Shape after the warm-up; step falls at the milestones, cyclic rises from 0 to the middle and falls to 0."""
    milestones: tuple[Real, ...] = (0.6, 0.8)
    """Schedule step: where the rate is multiplied by gamma, as fractions of the stage's epochs, ascending."""
    gamma: tuple[Real, ...] = (0.1,)
    """Schedule step: one factor for all milestones, or one for each."""
    final_lr: Real = 0.0
    """Where the cosine ends."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""
    warmup_lr: Real = 0.0
    """Where the warm-up begins."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "above 0", self.lr)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.trust > 0, "trust", "above 0", self.trust)
        ascending = list(self.milestones) == sorted(set(self.milestones))
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        require(ascending and inside, "milestones", "ascending fractions in (0, 1)", self.milestones)
        counts = {1, len(self.milestones)}
        require(len(self.gamma) in counts, "gamma", f"{' or '.join(map(str, sorted(counts)))} factors", self.gamma)
        require(all(factor > 0 for factor in self.gamma), "gamma", "above 0", self.gamma)
        require(0 <= self.final_lr <= self.lr, "final_lr", f"in [0, lr = {self.lr}]", self.final_lr)
        require(0 <= self.warmup_lr <= self.lr, "warmup_lr", f"in [0, lr = {self.lr}]", self.warmup_lr)
        require(self.warmup_epochs >= 0, "warmup_epochs", "at least 0", self.warmup_epochs)


@dataclass(frozen=True)
class EncoderConfig:
    """The backbone."""

    name: str = "resnet18"
    """The network: digits_cnn; resnet18, 34, 50 and 101 for small images; resnet18_imagenet and 50 for large ones."""
    bn: BatchNormConfig = BatchNormConfig()
    """Branches of batch normalisation."""


@dataclass(frozen=True)
class ProjectorConfig:
    """The MLP between features and the contrastive loss."""

    hidden_dim: int = 512
    """Width of the hidden layer."""
    dim: int = 128
    """Width of the embeddings."""
    layers: int = 2
    """Linear layers; 1 is a linear map."""
    batch_norm: Literal["none", "hidden", "all"] = "none"
    """Batch norm after the hidden layers, or after all of them; it has the encoder's branches."""

    def __post_init__(self) -> None:
        require(self.hidden_dim > 0, "projector.hidden_dim", "above 0", self.hidden_dim)
        require(self.dim > 0, "projector.dim", "above 0", self.dim)
        require(self.layers > 0, "projector.layers", "above 0", self.layers)


@dataclass(frozen=True)
class FinetuneConfig:
    """A classifier on the pre-trained encoder."""

    epochs: int = 25
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=0.1, weight_decay=2e-4, schedule="step")
    """Optimiser of the classifier, and of the encoder where that is trained too."""
    augment: str = "none"
    """A key of clead.augment.AUGMENTATIONS."""
    zero_init: bool = True
    """Start from a classifier of zeros instead of small random numbers."""
    branch: str | None = None
    """Batch-norm branch to train and evaluate; None takes encoder.bn.evaluation_branch."""
    data: str | None = None
    """Transfer to this data set, a key of clead.data.DATASETS; None stays on that of the pre-training."""
    data_dir: Path | None = None
    """Folder of that data set; None takes the run's data_dir."""
    select: Literal["last", "best_val"] = "last"
    """Keep the last weights, or those of the epoch that was best on held-out training images."""
    val_fraction: Real = 0.0
    """Share of the training split held out; 0 holds out the data set's own validation split, and only for best_val."""

    def check(self, name: str) -> None:
        """Refuse impossible values; ``name`` is what the configuration calls this stage."""
        require(self.epochs >= 0, f"{name}.epochs", "at least 0", self.epochs)
        least = 2 if name.endswith("finetune") else 1  # batch norm needs a second image
        require(self.batch_size >= least, f"{name}.batch_size", f"at least {least}", self.batch_size)
        require(0 <= self.val_fraction < 1, f"{name}.val_fraction", "in [0, 1)", self.val_fraction)


@dataclass(frozen=True)
class LinearEvalConfig(FinetuneConfig):
    """A linear classifier on the frozen encoder."""

    epochs: int = 100
    """Passes over the training split."""
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=1e-4, schedule="constant")
    """Optimiser of the classifier."""
    zero_init: bool = False
    """Start from a classifier of zeros instead of small random numbers."""


@dataclass(frozen=True)
class AdvFinetuneConfig(FinetuneConfig):
    """A classifier trained on attacked images."""

    loss: Literal["ce", "trades"] = "trades"
    """Cross-entropy on PGD images (Madry), or TRADES."""
    beta: Real = 6.0
    """Weight of TRADES' divergence."""
    attack: AttackConfig = AttackConfig()
    """The inner maximisation."""

    def check(self, name: str) -> None:
        """Refuse impossible values; ``name`` is what the configuration calls this stage."""
        super().check(name)
        require(self.beta >= 0, f"{name}.beta", "at least 0", self.beta)


@dataclass(frozen=True)
class EvaluationConfig:
    """Attacks on the finished classifier, on the test split."""

    attacks: tuple[str, ...] = ("fgsm", "pgd20", "cw")
    """By the names that clead.evaluate takes: fgsm, pgdN (N steps), cw (linf, 20 steps on the margin), autoattack …"""
    eps: tuple[Real, ...] = (8 / 255, 16 / 255)
    """Radii reported in the table."""
    sweep_eps: tuple[Real, ...] = ()
    """Further radii for PGD-20, for the figure of accuracy against eps."""
    samples: int | None = None
    """Only the first N test images; all when None."""
    batch_size: int = 500
    """Images attacked at once."""

    def __post_init__(self) -> None:
        for value in (*self.eps, *self.sweep_eps):
            require(0 <= value <= 1, "evaluation.eps", "in [0, 1]", value)
        require(len(set(self.eps)) == len(self.eps), "evaluation.eps", "without repetitions", self.eps)
        require(self.samples is None or self.samples > 0, "evaluation.samples", "above 0", self.samples)
        require(self.batch_size > 0, "evaluation.batch_size", "above 0", self.batch_size)

    @property
    def swept(self) -> tuple[float, ...]:
        """The radii of the sweep that PGD-20 is not measured at for the table."""
        table = self.eps if {"pgd20", "pgd"} & set(self.attacks) else ()
        return tuple(eps for eps in dict.fromkeys(self.sweep_eps) if eps not in table)


@dataclass(frozen=True)
class SpeedConfig:
    """How pre-training is computed; all but precision change nothing but the order of sums."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of encoder and heads: tf32 is CUDA's fast float32, bf16 autocast; losses and perturbations stay float32."""
    channels_last: bool = False
    """Keep convolutions' weights, and so all feature maps, with the channels innermost."""
    winograd: bool = True
    """On CPUs, compute convolutions of 3x3 and stride 1 by Winograd's algorithm, with fewer multiplications."""
    fold: bool = True
    """Attack a copy of the model in which eval-mode batch norm is folded into the convolutions."""
    executor: Executor = "eager"
    """Run that copy as it is, through torch.compile, or as captured CUDA graphs."""

    def __post_init__(self) -> None:
        require(self.fold or self.executor == "eager", "speed.executor", "eager without speed.fold", self.executor)

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """What autocast computes in; None without it."""
        return torch.bfloat16 if self.precision == "bf16" else None


Encoding = Literal["features", "embeddings"]


@dataclass(frozen=True)
class KNNConfig:
    """Weighted nearest neighbours among the training images, on frozen encodings."""

    on: tuple[Encoding, ...] = ()
    """Encodings to measure: features, embeddings or both."""
    k: int = 200
    """Number of neighbours; at most as many as there are training images are taken."""
    temperature: Real = 0.1
    """A neighbour votes with weight exp(cosine / temperature)."""

    def __post_init__(self) -> None:
        require(self.k > 0, "knn.k", "above 0", self.k)
        require(self.temperature > 0, "knn.temperature", "above 0", self.temperature)


@dataclass(frozen=True)
class LogisticRegressionConfig:
    """Logistic regression on frozen encodings (CLAE's protocol)."""

    on: tuple[Encoding, ...] = ()
    """Encodings to measure: features, unit-norm embeddings or both."""
    epochs: int = 1000
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step."""
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=3e-4, schedule="constant")
    """Optimiser of the classifier."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "logistic_regression.epochs", "at least 0", self.epochs)
        require(self.batch_size > 0, "logistic_regression.batch_size", "above 0", self.batch_size)
