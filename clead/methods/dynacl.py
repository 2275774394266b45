"""DynACL: ACL with fading augmentation."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clead.config import Real, require
from clead.methods.acl import ACL
from clead.methods.base import Batch
from clead.models import Branch, Model


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

    accumulates = False  # the momentum encoder follows at the end of every loss
    paper = "Luo et al., ICLR 2023, arXiv:2303.01289"
    config: DynACL.Config

    def __init__(self, config: DynACL.Config) -> None:
        super().__init__(config)
        self._momentum_model: Model | None = None
        self._both: _Both | None = None
        self._saved: dict[str, Tensor] = {}

    def training_loss(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The reweighted eq. 5 of ACL; then the momentum encoder follows."""
        views, size = self.views(batch), len(batch.images)
        x_adv = self.adversaries(model, views, batch)
        streams = ((self.clean_branch, size), (self.adv_branch, size))
        first, second = (torch.cat(pair) for pair in zip(views.chunk(2), x_adv.chunk(2), strict=True))
        z_1, z_1_adv = model.embed(first, branch=streams).chunk(2)
        z_2, z_2_adv = self.momentum_model(model).embed(second, branch=streams).chunk(2)
        z, z_adv = torch.cat([z_1, z_2]), torch.cat([z_1_adv, z_2_adv])
        self._follow(model)
        w = self.config.reweighting * self._faded(batch)
        return {"clean": (1 - w) / 2 * self.contrast(z).mean(), "adv": (1 + w) / 2 * self.contrast(z_adv).mean()}

    def views(self, batch: Batch, count: int = 2) -> Tensor:
        """Two views, the weaker the later in training."""
        augment = self.augment.faded(1 - self._faded(batch))
        return augment(batch.images, batch.views("augment", count))

    def attacked(self, model: Model) -> nn.Module:
        """The second view is seen by the momentum encoder."""
        if self._both is None or self._both.first is not model:
            self._both = _Both(model, self.momentum_model(model))
        return self._both

    def momentum_model(self, model: Model) -> Model:
        """The momentum encoder and its projector, at first a copy of ``model``."""
        if self._momentum_model is None:
            self._momentum_model = copy.deepcopy(model).requires_grad_(False)
            if self._saved:
                self._momentum_model.load_state_dict(self._saved)
        return self._momentum_model

    @torch.no_grad()
    def _follow(self, model: Model) -> None:
        mine, others = (list[Tensor](one.parameters()) for one in (self.momentum_model(model), model))
        torch._foreach_lerp_(mine, others, 1 - self.config.momentum)

    def _faded(self, batch: Batch) -> float:
        """The share of training done, in whole stages."""
        # Rounded first: 0.15 is 2.9999999999999996 twentieths.
        return math.floor(round(batch.progress * self.config.fading_stages, 9)) / self.config.fading_stages

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum encoder."""
        return self._saved if self._momentum_model is None else self._momentum_model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the momentum encoder."""
        self._saved, self._momentum_model, self._both = state, None, None


class _Both(nn.Module):
    """Two encoders, one for each of two views."""

    def __init__(self, first: Model, second: Model) -> None:
        super().__init__()
        self.first, self.second = first, second

    def embed(self, x: Tensor, branch: Branch) -> Tensor:
        """Embeddings [2B, d] of two views [2B, C, H, W]."""
        first, second = x.chunk(2)
        return torch.cat([self.first.embed(first, branch), self.second.embed(second, branch)])
