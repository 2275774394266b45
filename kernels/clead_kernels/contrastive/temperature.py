"""A temperature that is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _arguments as arguments


class Temperature(torch.nn.Module):
    """A learnable temperature within bounds, kept as its logarithm (as in CLIP: Radford et al., arXiv 2103.00020, 2.5).

    In training the logarithm is brought back within the bounds, in place, before every use; so it never wanders off,
    and at a bound still gets the gradient that leads away from it. Leave it out of weight decay, which pulls it to 1.

    Attributes:
        log_temperature: 0-d parameter.
        low: least temperature; CLIP's largest logit scale of 100 is 0.01.
        high: largest temperature.

    Example:
        >>> temperature = Temperature(0.07)
        >>> loss = clip_loss(image_embeddings, text_embeddings, temperature=temperature())
    """

    def __init__(self, initial: float = 0.07, *, low: float = 0.01, high: float = 10.0) -> None:
        super().__init__()
        for name, value in (("initial", initial), ("low", low), ("high", high)):
            arguments.check_real(name, value)
        if not 0.0 < low <= initial <= high < math.inf:
            raise ValueError(f"initial must be within 0 < low <= initial <= high, got {initial} in [{low}, {high}]")
        self.low, self.high = float(low), float(high)
        self.log_temperature = torch.nn.Parameter(torch.tensor(math.log(initial), dtype=torch.float32))

    def forward(self) -> Tensor:
        """The temperature, 0-d, as the losses of this package take it."""
        bounds = math.log(self.low), math.log(self.high)
        if self.training:
            with torch.no_grad():
                self.log_temperature.clamp_(*bounds)
        return self.log_temperature.clamp(*bounds).exp()

    def extra_repr(self) -> str:
        """The value and its bounds, for ``print``."""
        return f"{self.log_temperature.exp().item():.4g}, low={self.low:g}, high={self.high:g}"
