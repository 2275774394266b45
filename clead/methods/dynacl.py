"""DynACL: ACL with fading augmentation."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clead.attacks import frozen
from clead.config import Real, require
from clead.methods.acl import ACL
from clead.methods.base import Batch
from clead.models import Branch, Model
from clead_kernels import FalseNegatives


class DynACL(ACL):
    """ACL whose augmentation fades and whose adversarial stream gains weight during training.

    Luo et al., "Rethinking the effect of data augmentation in adversarial contrastive learning", ICLR 2023,
    arXiv:2303.01289, eq. 5 to 7. With the share p of training done, rounded down to a multiple of 1 / stages:

        L = (1 - w) L_NT(t, t'; clean batch norm) + (1 + w) L_NT(t + d, t' + d'; adversarial batch norm), halved,
        augmentation strength 1 - p, w = reweighting p

    As in the official code the second view's embeddings are those of a momentum encoder, through which the attack has
    gradients and training has none; unlike there, the trained encoder is what is kept and evaluated. This is the
    paper's pre-training alone: DynACL++ adds a stage on pseudo-labels, which is not implemented.
    """

    @dataclass(frozen=True)
    class Config(ACL.Config):
        """DynACL."""

        fading_stages: int = 20
        """How often strength and weight move, in equal shares of training."""
        reweighting: Real = 2 / 3
        """How far the weight of the adversarial stream would rise above 1 by the end of training."""
        momentum: Real = 0.99
        """Share of its weights that the momentum encoder keeps in a step; 0 makes it the encoder before its step."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self.fading_stages > 0, "fading_stages", "above 0", self.fading_stages)
            require(0 <= self.reweighting <= 1, "reweighting", "in [0, 1]", self.reweighting)
            require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)

    paper = "Luo et al., ICLR 2023, arXiv:2303.01289"
    config: DynACL.Config

    def __init__(self, config: DynACL.Config) -> None:
        super().__init__(config)
        self._momentum_model: Model | None = None
        self._saved: dict[str, Tensor] = {}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The reweighted eq. 5 of ACL; then the momentum encoder follows."""
        views = self.views(batch)
        x_adv = self.adversaries(model, views, batch)
        z, z_adv = self.embed(model, views, self.clean_branch), self.embed(model, x_adv, self.adv_branch)
        self._follow(model)
        w = self.config.reweighting * self._faded(batch)
        return {"clean": (1 - w) / 2 * self.contrast(z).mean(), "adv": (1 + w) / 2 * self.contrast(z_adv).mean()}

    def views(self, batch: Batch, count: int = 2) -> Tensor:
        """Two views, the weaker the later in training."""
        augment = self.augment.faded(1 - self._faded(batch))
        return torch.cat([augment(batch.images, batch.rng("augment", view)) for view in range(count)])

    def adversaries(
        self, model: Model, views: Tensor, batch: Batch, cancelled: FalseNegatives | Tensor | None = None
    ) -> Tensor:
        """As in ACL, with the second view seen by the momentum encoder."""
        with frozen(self.momentum_model(model)):
            return super().adversaries(model, views, batch, cancelled)

    def embed(self, model: Model, x: Tensor, branch: Branch) -> Tensor:
        """Two views [2B, C, H, W], the second one's embeddings by the momentum encoder."""
        first, second = x.chunk(2)
        return torch.cat([model.embed(first, branch), self.momentum_model(model).embed(second, branch)])

    def momentum_model(self, model: Model) -> Model:
        """The momentum encoder and its projector, at first a copy of ``model``."""
        if self._momentum_model is None:
            self._momentum_model = copy.deepcopy(model).requires_grad_(False)
            if self._saved:
                self._momentum_model.load_state_dict(self._saved)
        return self._momentum_model

    @torch.no_grad()
    def _follow(self, model: Model) -> None:
        for mine, other in zip(self.momentum_model(model).parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 1 - self.config.momentum)

    def _faded(self, batch: Batch) -> float:
        """The share of training done, in whole stages."""
        # Rounded first: 0.15 is 2.9999999999999996 twentieths.
        return math.floor(round(batch.progress * self.config.fading_stages, 9)) / self.config.fading_stages

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum encoder."""
        return self._saved if self._momentum_model is None else self._momentum_model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the momentum encoder."""
        self._saved, self._momentum_model = state, None
