"""ASCL: adversarial supervised contrastive learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clead.augment import Augmentation, find_augmentation
from clead.config import AttackConfig, ContrastiveConfig, Real, require
from clead.losses import ascl_loss, instance_loss, kl_divergence, mart_loss, trades_loss
from clead.methods.base import Batch
from clead.methods.contrastive import ContrastiveMethod
from clead.models import LinearHead, Model, Pass

Term = Literal["at", "cl", "ascl"]
_CRAFTED_BY: dict[str, Term | None] = {"ensemble": None, "label_based": "at", "label_free": "cl"}


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch with its augmented images: x [B, C, H, W] to be perturbed, and two views [2B, C, H, W]."""

    batch: Batch
    x: Tensor
    views: Tensor


class ASCL(ContrastiveMethod["ASCL.Config"]):
    """Adversarial training plus two contrastive terms, without and with labels, each on its own perturbation.

    Li et al., "Adversarial supervised contrastive learning", Machine Learning 112 (2023), 10.1007/s10994-022-06269-7,
    eq. 10, with x a weakly augmented image and t, t' two strongly augmented views of it:

        L = max l_AT(x + d) + 0.5 max l_CL(t, t', x + d) + 0.2 max l_ASCL(t, t', x + d)

    Settled where the paper is silent or ambiguous:

    - l_CL is NT-Xent over the three views t, t', x + d: section 3.2.1 argues against perturbing the strong views
      themselves. ``pairs="adv_adv"`` does that all the same: l_CL(t + d, t' + d') of eq. 5 and eq. 8 for l_ASCL.
    - l_ASCL is eq. 9 with z_p^adv for the z^adv it prints.
    - Table 6 keeps the losses and changes who crafts the perturbation: every term's own loss (``ensemble``),
      cross-entropy for all (``label_based``) or l_CL for all (``label_free``).
    - Clean views pass through the branch ``clean``, perturbed images through ``adv``, which is also evaluated; with a
      single branch both share it (table 8). The clean x of TRADES and MART shares the branch of its perturbed version.
    - Numbers of attack steps, temperature, head, augmentation and epochs are not given: see the recipes.
    - With ``unlabeled_data`` l_CL sees another data set (eq. 10 has one expectation over labelled and one over
      unlabelled data).
    """

    @dataclass(frozen=True)
    class Config(ContrastiveConfig):
        """ASCL."""

        adv_augment: str = "crop_flip"
        """Augmentation of the images that are perturbed, a key of clead.augment.AUGMENTATIONS."""
        attack: AttackConfig = AttackConfig()
        """The inner maximisation of the adversarial-training term."""
        contrastive_steps: int = 5
        """Gradient steps of the contrastive inner maximisations, which are otherwise the same."""
        at_term: Literal["ce", "trades", "mart"] = "ce"
        """l_AT: cross-entropy on perturbed images, or the loss and attack of TRADES or MART."""
        beta: Real = 6.0
        """Weight of the divergence of trades (6 in its paper) or mart (5)."""
        cl_weight: Real = 0.5
        """Weight of the term without labels; 0 leaves it out."""
        ascl_weight: Real = 0.2
        """Weight of the term with labels; 0 leaves it out."""
        pairs: Literal["view_adv", "adv_adv"] = "view_adv"
        """Contrast clean views with adversarial images, or adversarial views among themselves."""
        perturbations: Literal["ensemble", "label_based", "label_free"] = "ensemble"
        """Whose loss crafts them: every term's own, cross-entropy's, the unlabelled contrastive one's."""
        unlabeled_data: str | None = None
        """Data set of the term without labels, a key of clead.data.DATASETS; None takes the labelled images."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.contrastive_steps >= 0, "contrastive_steps", "at least 0", self.contrastive_steps)
            require(self.beta >= 0, "beta", "at least 0", self.beta)
            require(self.cl_weight >= 0, "cl_weight", "at least 0", self.cl_weight)
            require(self.ascl_weight >= 0, "ascl_weight", "at least 0", self.ascl_weight)
            shared = self.perturbations != "ensemble"
            require(not shared or self.pairs == "view_adv", "pairs", f"view_adv with {self.perturbations}", self.pairs)
            needs_labels = self.perturbations == "label_based" and self.unlabeled_data is not None
            require(not needs_labels, "perturbations", "ensemble or label_free with unlabeled_data", "label_based")

    paper = "Li et al., Machine Learning 2023, 10.1007/s10994-022-06269-7"
    ops = ("nt_xent", "sup_con", "pgd_step_", "random_start_")
    labelled = True

    def __init__(self, config: ASCL.Config) -> None:
        super().__init__(config)
        self.adv_augment = find_augmentation(config.adv_augment, config.impl)

    def heads(self, feature_dim: int, num_classes: int) -> dict[str, nn.Module]:
        """A two-layer projector and the classifier of adversarial training."""
        return {**super().heads(feature_dim, num_classes), "classifier": LinearHead(feature_dim, num_classes)}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Eq. 10."""
        config = self.config
        labelled = self.inputs(batch)
        free = labelled if batch.unlabeled is None else self.inputs(batch.unlabeled)
        crafted_by = _CRAFTED_BY[config.perturbations]
        # Cached, because table 6's shared perturbation serves several terms.
        perturbed = cache(lambda term, inputs: self.perturbed(model, inputs, crafted_by or term))
        weighted: list[tuple[Term, Real, Inputs]] = [
            ("cl", config.cl_weight, free),
            ("ascl", config.ascl_weight, labelled),
        ]
        contrasts = [(term, inputs) for term, weight, inputs in weighted if weight]
        viewed = dict.fromkeys(inputs for _, inputs in contrasts) if config.pairs == "view_adv" else {}

        x_adv = perturbed("at", labelled)
        at = x_adv if config.at_term == "ce" else torch.cat([labelled.x, x_adv])
        attacked = [(images, self.adv_branch) for images in (at, *(perturbed(*contrast) for contrast in contrasts))]
        streams = [*attacked, *((inputs.views, self.clean_branch) for inputs in viewed)]
        features = iter(self._features(model, streams))

        terms = self._at(model.classify(next(features)), batch.labels)
        z_adv = {term: model.project(next(features), self.adv_branch) for term, _ in contrasts}
        views = {inputs: model.project(next(features), self.clean_branch) for inputs in viewed}
        if "cl" in z_adv:
            terms["cl"] = config.cl_weight * instance_loss(views.get(free), z_adv["cl"], **self._options)
        if "ascl" in z_adv:
            loss = ascl_loss(views.get(labelled), z_adv["ascl"], batch.labels, **self._options)
            terms["ascl"] = config.ascl_weight * loss
        return terms

    def _features(self, model: Model, streams: list[tuple[Tensor, str]]) -> tuple[Tensor, ...]:
        """The features of every stream of images in its branch, from one forward pass."""
        branch = tuple((name, len(images)) for images, name in streams)
        features = model.features(torch.cat([images for images, _ in streams]), branch=branch)
        return torch.split(features, [size for _, size in branch])

    def _at(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """l_AT, or the two terms of TRADES or MART in its place, whose logits are those of x and of x + d."""
        if self.config.at_term == "ce":
            return {"ce_adv": F.cross_entropy(logits, labels)}
        loss = trades_loss if self.config.at_term == "trades" else mart_loss
        clean, adversarial = logits.chunk(2)
        return loss(clean, adversarial, labels, beta=self.config.beta)

    def perturbed(self, model: Model, inputs: Inputs, by: Term) -> Tensor:
        """The images that maximise the loss ``by``: x + d, or both views t + d, t' + d' for ``pairs="adv_adv"``."""
        config, batch = self.config, inputs.batch
        if by == "at":
            return self.perturb(
                model,
                Pass("logits", self.adv_branch),
                self._at_objective(model, inputs),
                inputs.x,
                config.attack,
                batch.rng("attack"),
            )
        alone = config.pairs == "view_adv"
        z = self.constant(model, Pass("embed", self.clean_branch), inputs.views) if alone else None
        losses: dict[Term, Callable[[Tensor], Tensor]] = {
            "cl": lambda z_adv: instance_loss(z, z_adv, reduction="none", **self._options),
            "ascl": lambda z_adv: ascl_loss(z, z_adv, batch.labels, reduction="none", **self._options),
        }
        first = {"cl": 1, "ascl": 3}[by]
        return self.perturb(
            model,
            Pass("embed", self.adv_branch),
            losses[by],
            inputs.x if alone else inputs.views,
            replace(config.attack, steps=config.contrastive_steps),
            batch.rng("attack", first) if alone else batch.rng("attack", first).cat(batch.rng("attack", first + 1)),
        )

    def _at_objective(self, model: Model, inputs: Inputs) -> Callable[[Tensor], Tensor]:
        """What the attack of l_AT ascends: cross-entropy, or TRADES' divergence."""
        if self.config.at_term != "trades":
            return lambda logits: F.cross_entropy(logits, inputs.batch.labels, reduction="none")
        logits = self.constant(model, Pass("logits", self.adv_branch), inputs.x)
        return partial(kl_divergence, logits=logits)

    def inputs(self, batch: Batch) -> Inputs:
        """The batch, augmented."""
        return Inputs(batch, self.adv_augment(batch.images, batch.rng("augment", 2)), self.views(batch))

    @property
    def _options(self) -> dict[str, Any]:
        return {"temperature": self.config.temperature, "impl": self.config.impl}

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """That of the views and that of the perturbed images."""
        return (self.augment, self.adv_augment)

    @property
    def unlabeled_data(self) -> str | None:
        """The data set of l_CL, if it is another one."""
        return self.config.unlabeled_data

    @property
    def op_features(self) -> dict[str, str]:
        """Eq. 9 leaves the anchor out of its candidates."""
        return {"self_index": "yes" if self.config.ascl_weight and self.config.pairs == "view_adv" else "no"}

    @property
    def trained_branches(self) -> tuple[str, ...]:
        """That of the perturbed images, and that of the clean views where there are any."""
        contrastive = self.config.cl_weight > 0 or self.config.ascl_weight > 0
        clean = contrastive and self.config.pairs == "view_adv"
        return (self.clean_branch, self.adv_branch) if clean else (self.adv_branch,)
