"""How the inner maximisation sees the model: through a view of it, or as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clead.attacks import Objective, Runner, frozen
from clead.config import SpeedConfig
from clead.models import Pass, View
from clead.models.view import signature


class Inner:
    """Objectives and constants of attacks on models that stand still meanwhile.

    Args:
        speed: ``fold`` takes views, else the model itself is frozen; ``executor`` runs passes of views.
    """

    def __init__(self, speed: SpeedConfig) -> None:
        self._speed = speed
        self._views: WeakKeyDictionary[nn.Module, dict[bool, tuple[View, Runner]]] = WeakKeyDictionary()

    def objective(
        self, model: nn.Module, encode: Pass, loss: Callable[[Tensor], Tensor], x: Tensor, *, training: bool
    ) -> Callable[[Tensor], Tensor]:
        """x_adv -> loss(encode(model, x_adv)) for x_adv like x, of the model as it is now; see ``Objective``."""
        if not self._speed.fold:
            return Objective(model, partial(encode, model), loss, training)
        view, runner = self._view(model, encode, training)
        run = runner(partial(encode, view.module), encode, x)
        return lambda x_adv: loss(run(x_adv))

    def constant(self, model: nn.Module, encode: Pass, x: Tensor, *, training: bool) -> Tensor:
        """encode(model, x) without any gradient, and nothing of the model changed."""
        if self._speed.fold:
            with torch.no_grad():
                return encode(self._view(model, encode, training)[0].module, x)
        with frozen(model, training=training), torch.no_grad():
            return encode(model, x)

    def _view(self, model: nn.Module, encode: Pass, training: bool) -> tuple[View, Runner]:
        """The view of the model, with its weights as they are now."""
        known = self._views.setdefault(model, {})
        if training not in known or known[training][0].signature != signature(model):
            known[training] = View(model, training=training), Runner(self._speed.executor)
        known[training][0].refresh(encode.branches)
        return known[training]
