"""AdvCL: adversarial contrastive learning with high-frequency views and cluster pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.augment import Augmentation, find_augmentation, high_pass
from clead.config import AttackConfig, ContrastiveConfig, Real, require
from clead.methods.base import Batch
from clead.methods.clusters import embed_all, kmeans
from clead.methods.contrastive import ContrastiveMethod
from clead.models import LinearHead, Model
from clead.rng import Rng
from clead_kernels import nt_xent


class AdvCL(ContrastiveMethod["AdvCL.Config"]):
    """NT-Xent of two views, a high-frequency and an adversarial one, plus adversarial training on k-means clusters.

    Fan et al., "When does contrastive learning preserve adversarial robustness from pretraining to finetuning?",
    NeurIPS 2021, arXiv:2111.01124, eq. 5 to 7, with x a weakly augmented image, t and t' strongly augmented ones, x_h
    the frequencies of x above a radius, and c_k the image's cluster among k:

        L = temperature / base_temperature max_d L_NT(t, t', x_h, x + d) + 0.2 mean_k max_d' CE(x + d', c_k)

    - The two perturbations are found apart: their terms share no variable. As in the official code batch norm is in
      train mode during the attack; unlike there, running statistics do not move.
    - Three branches: ``clean`` for t, t' and x_h (each normalised by its own batch), ``adv`` for x + d, which is
      evaluated, and ``adv_ce`` for x + d'. Every number of clusters has a linear head on the features.
    - The official clusters are k-means on features of a SimCLR trained on ImageNet. Here no other data is used: they
      are k-means on the model's own embeddings of unaugmented images in the branch ``clean``, every ``refresh_epochs``
      epochs from the first on, each time from the clusters before, so that a head's classes keep their meaning.
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """AdvCL."""

        adv_augment: str = "crop_flip"
        """Augmentation of the images that are perturbed and filtered, a key of clead.augment.AUGMENTATIONS."""
        attack: AttackConfig = AttackConfig(steps=5)
        """Both inner maximisations."""
        radius: Real = 8.0
        """The high-frequency view loses the frequencies below it, in cycles per image."""
        base_temperature: Real = 0.07
        """The contrastive term is multiplied by temperature / base_temperature."""
        ce_weight: Real = 0.2
        """Weight of the pseudo-label term; 0 leaves it out."""
        clusters: tuple[int, ...] = (2, 10, 50, 100, 500)
        """Numbers of clusters, one k-means each."""
        refresh_epochs: int = 50
        """Epochs between two clusterings."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.radius >= 0, "radius", "at least 0", self.radius)
            require(self.base_temperature > 0, "base_temperature", "above 0", self.base_temperature)
            require(self.ce_weight >= 0, "ce_weight", "at least 0", self.ce_weight)
            different = len(set(self.clusters)) == len(self.clusters) > 0 and min(self.clusters) > 0
            require(different, "clusters", "different numbers above 0", self.clusters)
            require(self.refresh_epochs > 0, "refresh_epochs", "above 0", self.refresh_epochs)

    paper = "Fan et al., NeurIPS 2021, arXiv:2111.01124"
    ops = ("nt_xent", "pgd_step_", "random_start_")

    def __init__(self, config: AdvCL.Config) -> None:
        super().__init__(config)
        self.adv_augment = find_augmentation(config.adv_augment)
        self.pseudo_labels = torch.empty(0, 0, dtype=torch.int64)

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """The projector, and a classifier for every number of clusters where they have a weight."""
        clusters = self.config.clusters if self.config.ce_weight else ()
        return {
            **super().heads(feature_dim, num_classes),
            **{f"clusters_{k}": LinearHead(feature_dim, k) for k in clusters},
        }

    def start_epoch(self, model: Model, images: Callable[[Tensor], Tensor], size: int, epoch: int) -> None:
        """Cluster the training split: ``pseudo_labels`` [numbers of clusters, size]."""
        if epoch % self.config.refresh_epochs or not self.config.ce_weight:
            return
        embeddings = embed_all(model, images, size, branch=self.clean_branch)
        rng = Rng.create(self.config.seed, "kmeans", torch.arange(size, device=embeddings.device), step=epoch)
        before = self.pseudo_labels if len(self.pseudo_labels) else [None] * len(self.config.clusters)
        self.pseudo_labels = torch.stack(
            [
                kmeans(embeddings, k, rng.view(level), start=start)[0]
                for level, (k, start) in enumerate(zip(self.config.clusters, before, strict=True))
            ]
        )

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 7."""
        config, size = self.config, len(batch.images)
        x = self.adv_augment(batch.images, batch.rng("augment", 2))
        clean = torch.cat([self.views(batch), high_pass(x, config.radius)])
        z = model.embed(clean, branch=((self.clean_branch, size),) * 3)
        z_adv = model.embed(self.contrast_adversary(model, x, z.detach(), batch), branch=self.adv_branch)
        terms = {"contrast": config.temperature / config.base_temperature * self.contrast(z, z_adv).mean()}
        if config.ce_weight:
            x_ce = self.cluster_adversary(model, x, batch)
            terms["clusters"] = config.ce_weight * self.cluster_loss(model, x_ce, batch).mean()
        return terms

    def contrast_adversary(self, model: Model, x: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """x + d [B, C, H, W], far from the embeddings [3B, d] of the clean views."""
        return self.perturb(
            model,
            lambda x_adv: model.embed(x_adv, branch=self.adv_branch),
            lambda z_adv: self.contrast(z, z_adv).view(4, -1).sum(0),
            x,
            self.config.attack,
            batch.rng("attack", 0),
            training=True,
        )

    def cluster_adversary(self, model: Model, x: Tensor, batch: Batch) -> Tensor:
        """x + d' [B, C, H, W], mistaken for images of other clusters."""
        return self.perturb(
            model,
            lambda x_adv: self.cluster_loss(model, x_adv, batch),
            lambda losses: losses,
            x,
            self.config.attack,
            batch.rng("attack", 1),
            training=True,
        )

    def contrast(self, z: Tensor, z_adv: Tensor) -> Tensor:
        """NT-Xent of every row of the four views, [4B]."""
        return nt_xent(
            torch.cat([z, z_adv]),
            num_views=4,
            temperature=self.config.temperature,
            reduction="none",
            impl=self.config.impl,
        )

    def cluster_loss(self, model: Model, x: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of every image on its clusters, the mean over their numbers: [B]."""
        features = model.features(x, branch=self.ce_branch)
        labels = self.pseudo_labels[:, batch.sample_ids]
        losses = [
            F.cross_entropy(model.heads[f"clusters_{k}"](features), own, reduction="none")
            for k, own in zip(self.config.clusters, labels, strict=True)
        ]
        return torch.stack(losses).mean(0)

    @property
    def ce_branch(self) -> str:
        """The batch-norm branch of the pseudo-label term: ``adv_ce`` where the encoder has it."""
        return "adv_ce" if "adv_ce" in self.config.encoder.bn.branches else self.adv_branch

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """That of the views and that of the perturbed images."""
        return (self.augment, self.adv_augment)

    @property
    def min_samples(self) -> int:
        """An image for every cluster."""
        return max(self.config.clusters) if self.config.ce_weight else 1

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the clean views and those of the perturbed images."""
        return (self.clean_branch, self.adv_branch, *((self.ce_branch,) if self.config.ce_weight else ()))

    def state_dict(self) -> dict[str, Tensor]:
        """The clusters, which a later model cannot find again."""
        return {"pseudo_labels": self.pseudo_labels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the clusters."""
        self.pseudo_labels = state["pseudo_labels"]
