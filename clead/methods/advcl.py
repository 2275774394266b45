"""AdvCL: adversarial contrastive learning that keeps its robustness through fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.augment import Augmentation, find_augmentation, high_pass
from clead.config import AttackConfig, ContrastiveConfig, Real, require
from clead.methods.base import Batch
from clead.methods.clusters import embed_all, kmeans
from clead.methods.contrastive import ContrastiveMethod
from clead.models import LinearHead, Model, Pass
from clead.rng import Rng
from clead_kernels import nt_xent


class AdvCL(ContrastiveMethod["AdvCL.Config"]):
    """NT-Xent over two views, a high-frequency view and an adversarial image, and adversarial training on clusters.

    Fan et al., "When does contrastive learning preserve adversarial robustness from pretraining to finetuning?",
    NeurIPS 2021, arXiv:2111.01124. With x a weakly augmented image, t, t' two strongly augmented views of it, x_h its
    high frequencies and c_k(x) its cluster among k:

        L = t/t_0 max_d L_NT(t, t', x_h, x + d) + 0.2 max_d' mean_k CE_k(x + d', c_k(x))

    As the official code has it:

    - The two maxima share no variable, so each has its own attack. Batch norm is in train mode during both, but unlike
      there the attack moves no running statistics; its random start stays inside the box.
    - Every stream is normalised by its own batch statistics; t, t' and x_h in the branch ``clean``, x + d in ``adv``
      (which is evaluated), x + d' in ``adv_ce``.
    - The factor t/t_0, with t_0 = 0.07 the base temperature of SupCon's code, is 7.1 at t = 0.5.

    Settled here: the official clusters come from a network trained on ImageNet. Ours never leave the data set: k-means
    on the unit-norm features of the encoder itself, before the first epoch and every ``refresh_epochs`` epochs, from
    the second time on starting at the means of the clusters so far, so that a cluster keeps its number. With
    ``features_run`` the features are those of a finished run, and clustered once.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """AdvCL."""

        adv_augment: str = "crop_flip"
        """Augmentation of the image that is perturbed and high-passed, a key of clead.augment.AUGMENTATIONS."""
        attack: AttackConfig = AttackConfig(steps=5)
        """Both inner maximisations."""
        base_temperature: Real = 0.07
        """The contrastive term is multiplied by temperature / base_temperature."""
        high_pass_radius: Real = 8.0
        """Frequencies below it, in waves per image, are missing from x_h."""
        ce_weight: Real = 0.2
        """Weight of the cluster term."""
        clusters: tuple[int, ...] = (2, 10, 50, 100, 500)
        """Numbers of clusters, one k-means and one linear head each."""
        refresh_epochs: int = 50
        """Epochs between two clusterings."""
        features_run: Path | None = None
        """Cluster the features of this run, of a method without labels on the same data, once; None: one's own."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.base_temperature > 0, "base_temperature", "above 0", self.base_temperature)
            require(self.high_pass_radius >= 0, "high_pass_radius", "at least 0", self.high_pass_radius)
            require(self.ce_weight >= 0, "ce_weight", "at least 0", self.ce_weight)
            require(self.clusters != () and min(self.clusters) > 1, "clusters", "numbers above 1", self.clusters)
            require(len(set(self.clusters)) == len(self.clusters), "clusters", "without repetitions", self.clusters)
            require(self.refresh_epochs > 0, "refresh_epochs", "above 0", self.refresh_epochs)

    paper = "Fan et al., NeurIPS 2021, arXiv:2111.01124"
    ops = ("nt_xent", "pgd_step_", "random_start_")

    def __init__(self, config: AdvCL.Config) -> None:
        super().__init__(config)
        self.adv_augment = find_augmentation(config.adv_augment, config.impl)
        self.pseudo_labels = torch.empty(0, 0, dtype=torch.int64)

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """The projector, and a linear classifier for every number of clusters."""
        classifiers = {f"clusters_{k}": LinearHead(feature_dim, k) for k in self.config.clusters}
        return {**super().heads(feature_dim, num_classes), **classifiers}

    def check_images(self, images: Tensor) -> None:
        """Refuse too large a ``high_pass_radius`` too."""
        super().check_images(images)
        high_pass(images, self.config.high_pass_radius)

    def start_epoch(self, model: Model, images: Callable[[Tensor], Tensor], size: int, epoch: int) -> None:
        """Cluster the training split: ``pseudo_labels``, int64 [numbers of clusters, size]."""
        done = len(self.pseudo_labels) > 0
        again = self.config.features_run is None and epoch % self.config.refresh_epochs == 0
        if done and not again:
            return
        model = self.features_model or model
        features = embed_all(model, images, size, branch=model.evaluation_branch, head=None)
        rng = Rng.create(self.config.seed, "kmeans", torch.arange(size, device=features.device), step=epoch)
        previous = self.pseudo_labels if done else [None] * len(self.config.clusters)
        levels = zip(self.config.clusters, previous, strict=True)
        self.pseudo_labels = torch.stack([kmeans(features, k, rng.view(k), labels)[0] for k, labels in levels])

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Both terms, on the worst perturbation of each."""
        config, size = self.config, len(batch.images)
        x = self.adv_augment(batch.images, batch.rng("augment", 2))
        clean = torch.cat([self.views(batch), high_pass(x, config.high_pass_radius)])
        labels = self.pseudo_labels[:, batch.sample_ids]
        # Every stream has statistics of its own, so these embeddings serve the attack and the loss.
        z = model.embed(clean, branch=((self.clean_branch, size),) * 3)
        x_cl = self.contrastive_adversary(model, z.detach(), x, batch)
        x_ce = self.cluster_adversary(model, labels, x, batch)

        branches = ((self.adv_branch, size), (self.cluster_branch, size))
        features_cl, features = model.features(torch.cat([x_cl, x_ce]), branch=branches).chunk(2)
        z = torch.cat([z, model.project(features_cl, branch=self.adv_branch)])
        scale = config.temperature / config.base_temperature
        return {
            "contrast": scale * self.contrast(z).mean(),
            "ce_adv": config.ce_weight * self.cluster_loss(model, features, labels).mean(),
        }

    def contrastive_adversary(self, model: Model, z: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """x + d [B, C, H, W] that NT-Xent takes for another image than its views, whose embeddings are z [3B, d]."""
        return self.perturb(
            model,
            Pass("embed", self.adv_branch),
            lambda z_adv: self.contrast(torch.cat([z, z_adv])).view(4, -1).sum(0),
            x,
            self.config.attack,
            batch.rng("attack", 0),
            training=True,
        )

    def cluster_adversary(self, model: Model, labels: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """x + d' [B, C, H, W] that the cluster heads take for members of other clusters."""
        return self.perturb(
            model,
            Pass("features", self.cluster_branch),
            lambda features: self.cluster_loss(model, features, labels),
            x,
            self.config.attack,
            batch.rng("attack", 1),
            training=True,
        )

    def contrast(self, embeddings: Tensor) -> Tensor:
        """NT-Xent of every row of the four streams, [4B]."""
        temperature, impl = self.config.temperature, self.config.impl
        return nt_xent(embeddings, num_views=4, temperature=temperature, reduction="none", impl=impl)

    def cluster_loss(self, model: Model, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy on the clusters [numbers of clusters, B], the mean over their numbers: [B]."""
        heads = [model.heads[f"clusters_{k}"] for k in self.config.clusters]
        losses = [
            F.cross_entropy(head(features), own, reduction="none") for head, own in zip(heads, labels, strict=True)
        ]
        return torch.stack(losses).mean(0)

    @property
    def cluster_branch(self) -> str:
        """The batch-norm branch of x + d': ``adv_ce`` where the encoder has it, else that of x + d."""
        return "adv_ce" if "adv_ce" in self.config.encoder.bn.branches else self.adv_branch

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """That of the views and that of the perturbed images."""
        return (self.augment, self.adv_augment)

    @property
    def min_samples(self) -> int:
        """An image for every cluster."""
        return max(self.config.clusters)

    @property
    def selected_on_test(self) -> tuple[str, ...]:
        """The classifiers."""
        return ("linear_eval", "adv_linear_eval", "adv_finetune")

    @property
    def features_run(self) -> Path | None:
        """Whose features are clustered, if not its own."""
        return self.config.features_run

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """Those of the three kinds of streams."""
        return (self.clean_branch, self.adv_branch, self.cluster_branch)

    def state_dict(self) -> dict[str, Tensor]:
        """The clusters, which a later model cannot find again."""
        return {"pseudo_labels": self.pseudo_labels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the clusters."""
        self.pseudo_labels = state["pseudo_labels"]
