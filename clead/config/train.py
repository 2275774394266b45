"""What a run is configured by: what every method shares, and what the command line says beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clead.config.parts import (
    AdvFinetuneConfig,
    EncoderConfig,
    EvaluationConfig,
    FinetuneConfig,
    KNNConfig,
    LinearEvalConfig,
    LogisticRegressionConfig,
    OptimizerConfig,
    ProjectorConfig,
    SpeedConfig,
)
from clead.config.values import (
    CLASSIFIER_STAGES,
    STAGES,
    Flag,
    Impl,
    Integers,
    OnNonfinite,
    Real,
    Residence,
    Stage,
    require,
)

Comparison = Literal["undefended", "random"]


@dataclass(frozen=True)
class TrainConfig:
    """What every method shares."""

    data: str = "digits"
    """The images: digits, cifar10, cifar100, stl10, stl10_unlabeled, tiny_imagenet, folder; imagenet_val has none to
    train on."""
    data_dir: Path = Path("data")
    """Folder that holds the data set's files."""
    download: bool = False
    """Fetch the data set when it is not in data_dir."""
    image_size: int | None = None
    """Height and width to resize images to; None keeps the published size, 224 for folders of images."""
    train_samples: int | None = None
    """Only the first N training images, to try something out; all when None."""
    augment: str = "digits"
    """A key of clead.augment.AUGMENTATIONS; a wrong name lists them."""
    epochs: int = 100
    """Passes over the training split; 0 keeps the initial weights."""
    batch_size: int = 512
    """Images per step; a smaller last batch of an epoch is dropped."""
    accumulate: int = 1
    """Parts of a batch whose losses are differentiated one after the other; images contrast within their part only."""
    cache_batch: int = 0
    """Encode so many images at once, with the gradient of the whole batch's loss (GradCache); batch norm takes the
    statistics of so many too; 0 encodes the batch at once."""
    seed: int = 0
    """Seed of every random stream."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes cuda when there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the number to torch."""
    residence: Residence = "auto"
    """Where the images are kept: on the device; on the host, in memory or their file; auto takes the device unless they
    would fill half of its free memory, and on a CPU leaves those of a file there."""
    prefetch: int = 2
    """Batches that a thread fetches before their step, where images are fetched; 0 fetches each when it is due."""
    deterministic: bool = False
    """On a GPU, only algorithms that give the same bits every time, slower ones at times; a CPU's always do."""
    impl: Impl = "auto"
    """Implementation of the clead_kernels operators."""
    speed: SpeedConfig = SpeedConfig()
    encoder: EncoderConfig = EncoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    linear_eval: LinearEvalConfig = LinearEvalConfig()
    """Of a linear classifier on the frozen encoder."""
    adv_linear_eval: AdvFinetuneConfig = AdvFinetuneConfig()
    """Of the same on attacked images."""
    full_finetune: FinetuneConfig = FinetuneConfig()
    """Of the encoder together with a classifier."""
    adv_finetune: AdvFinetuneConfig = AdvFinetuneConfig()
    """Of the same on attacked images."""
    evaluation: EvaluationConfig = EvaluationConfig()
    knn: KNNConfig = KNNConfig()
    logistic_regression: LogisticRegressionConfig = LogisticRegressionConfig()
    stages: tuple[Stage, ...] = ("pretrain", "linear_eval", "evaluate")
    """Stages to run, in order."""
    paper_compat: bool = False
    """Choose epochs by accuracy on the test split, where the method's official code does; all such rows say so."""
    compare: tuple[Comparison, ...] = ()
    """Models shown beside the trained one: undefended (ce for the same steps), random (untrained encoder)."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    checkpoint_minutes: Real = 10.0
    """Minutes after which a checkpoint is due in any case; 0 goes by epochs only."""
    on_nonfinite: OnNonfinite = "stop"
    """What a loss or gradient that is not finite does: stop, or skip that step and count it."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "epochs", "at least 0", self.epochs)
        require(self.batch_size > 1, "batch_size", "at least 2", self.batch_size)
        parts = self.accumulate > 0 and self.batch_size % self.accumulate == 0
        require(parts, "accumulate", f"a divisor of batch_size = {self.batch_size}", self.accumulate)
        require(self.batch_size >= 2 * self.accumulate, "accumulate", "at most half of batch_size", self.accumulate)
        cached = self.cache_batch != 0
        require(not cached or self.cache_batch >= 3, "cache_batch", "0 or at least 3", self.cache_batch)
        # A chunk is encoded again when its gradient is taken, and a frozen model has its flags back by then; what is
        # compiled or captured is one pass.
        executable = self.speed.fold and self.speed.executor == "eager"
        expected = "0 without speed.fold or with a speed.executor other than eager"
        require(executable or not cached, "cache_batch", expected, self.cache_batch)
        require(self.image_size is None or self.image_size > 0, "image_size", "above 0", self.image_size)
        require(self.train_samples is None or self.train_samples > 0, "train_samples", "above 0", self.train_samples)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2**63)", self.seed)
        # torch takes any number and dies of it.
        require(0 <= self.threads <= 1024, "threads", "in [0, 1024]", self.threads)
        require(0 <= self.prefetch <= 64, "prefetch", "in [0, 64]", self.prefetch)
        require(self.checkpoint_every > 0, "checkpoint_every", "above 0", self.checkpoint_every)
        require(self.checkpoint_minutes >= 0, "checkpoint_minutes", "at least 0", self.checkpoint_minutes)
        for name in CLASSIFIER_STAGES:
            self.finetuning(name).check(name)
        order = [STAGES.index(stage) for stage in self.stages]
        require(order == sorted(set(order)) and order != [], "stages", f"a subsequence of {STAGES}", self.stages)

    def finetuning(self, stage: Stage) -> FinetuneConfig:
        """The settings of one of CLASSIFIER_STAGES."""
        config: FinetuneConfig = getattr(self, stage)
        return config


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """What every contrastive method adds."""

    projector: ProjectorConfig = ProjectorConfig()
    temperature: Real = 0.5
    """Softmax temperature of the contrastive loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", "above 0", self.temperature)


@dataclass(frozen=True)
class RunOptions:
    """What to do with the configuration; not part of it."""

    out: Path | None = None
    """Run folder; default runs/<method>-<data>-s<seed>."""
    resume: Flag = False
    """Continue an existing run folder (or start, when there is none)."""
    overwrite: Flag = False
    """Replace an existing run folder."""
    callbacks: tuple[str, ...] = ()
    """module:function to call with the run folder and every line of metrics; clead.callbacks:tensorboard is one."""
    seeds: Integers = ()
    """One run per seed, each in its own folder."""
    sweep: str | None = None
    """One run per value of a field, each in its own folder: attack.eps=4/255,8/255."""
    profile: int = 0
    """Write a trace of so many steps of the pre-training, and a page that says where they go, to the run's profile/."""
    dry_run: Flag = False
    """Print the stages, their steps and about how long they take, from a few measured steps; write nothing."""

    def __post_init__(self) -> None:
        require(self.profile >= 0, "profile", "at least 0", self.profile)
