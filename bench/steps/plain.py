"""The plain form of a step: its attack as the official codes write it, in eager float32 with batch norm as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clead.augment import high_pass
from clead.config import AttackConfig
from clead.models import Pass
from clead.rng import Rng
from clead_kernels import random_start_


@dataclass(frozen=True)
class Habits:
    """What an official attack loop computes beyond what it needs.

    Attributes:
        weight_gradients: the gradients of all weights, at every step (``loss.backward()``).
        constants: what does not change during the attack is encoded at every step, and differentiated or not.
    """

    weight_gradients: bool
    constants: Literal["forward", "backward"]


_AUTOGRAD_GRAD, _BACKWARD = Habits(False, "forward"), Habits(True, "forward")
HABITS = {
    **dict.fromkeys(("trades", "mart", "advcl"), _AUTOGRAD_GRAD),
    **dict.fromkeys(("rocl", "a_rocl"), Habits(False, "backward")),
    "clae": Habits(True, "backward"),
}
"""By method, from the official codes; C-LEAD and ASCL have none, and are written like the others (``_BACKWARD``)."""


class PlainAttack:
    """Takes the place of a method's ``perturb`` and ``constant``.

    Args:
        habits: what it wastes.
    """

    def __init__(self, habits: Habits) -> None:
        self._habits = habits
        self._constants: list[tuple[Pass, Tensor, Tensor]] = []  # pass, images, encoding
        self._used = False

    def constant(self, model: nn.Module, encode: Pass, x: Tensor, *, training: bool = False) -> Tensor:
        """The encoding, which is the first step's; the other steps of the next attacks do it again."""
        if self._used:
            self._constants, self._used = [], False
        modes = [(module, module.training) for module in model.modules()]
        model.train(training)
        images, encoding = self._encode(model, encode, x)
        _restore(modes)
        self._constants.append((encode, images, encoding))
        return encoding.detach()

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
        """Sign ascent in the linf ball."""
        assert config.norm == "linf"
        eps, step_size = config.eps * scale, config.step_size * scale
        x_adv = x.clone()
        if config.random_start:
            random_start_(
                x_adv, x, eps=eps, seed=rng.key, sample_ids=rng.sample_ids, step=rng.step, bounds=bounds, impl="auto"
            )
        weights = [weight for weight in model.parameters() if self._habits.weight_gradients and weight.requires_grad]
        modes = [(module, module.training) for module in model.modules()]
        model.train(training)
        constants = [constant for constant in self._constants if constant[0].kind == encode.kind]
        for step in range(config.steps):
            point = x_adv.detach().requires_grad_()
            total, inputs = loss(encode(model, point)).sum(), [point, *weights]
            for again, images, encoding in constants:
                if step or self._used:
                    images, encoding = self._encode(model, again, images)
                if encoding.requires_grad:
                    total = total + 0 * encoding.sum()
                    inputs.append(images)
            grad, *_ = torch.autograd.grad(total, inputs, allow_unused=True)
            x_adv = point.detach() + step_size * grad.sign()
            x_adv = x + (x_adv - x).clamp(-eps, eps)
            x_adv = x_adv if bounds is None else x_adv.clamp(*bounds)
            self._used = True
        _restore(modes)
        return x_adv

    def _encode(self, model: nn.Module, encode: Pass, x: Tensor) -> tuple[Tensor, Tensor]:
        """Constant images and their encoding, with a way back where the habit is one."""
        backward = self._habits.constants == "backward"
        images = x.detach().clone().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            return images, encode(model, images)


def make_plain(method: Any, name: str) -> None:
    """Give the method called ``name`` the attack of its official code."""
    attack = PlainAttack(HABITS.get(name, _BACKWARD))
    method.perturb, method.constant = attack.perturb, attack.constant
    if name == "advcl":
        method.contrastive_adversary = partial(_advcl_adversary, method, method.contrastive_adversary)


def _advcl_adversary(
    method: Any, adversary: Callable[..., Tensor], model: Any, z: Tensor, x: Tensor, batch: Any
) -> Tensor:
    """Its attack encodes the clean streams itself, which ours takes from the loss."""
    clean = torch.cat([method.views(batch), high_pass(x, method.config.high_pass_radius)])
    encode = Pass("embed", ((method.clean_branch, len(x)),) * 3)
    return adversary(model, method.constant(model, encode, clean, training=True), x, batch)


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode
