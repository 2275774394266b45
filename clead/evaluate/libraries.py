"""Models of timm, torchvision and Hugging Face's transformers, under the names that these libraries give them.

None of them is needed by anything else here, and none is reached before a model of its is asked for. The preprocessing
that remains ours is what --data does: a model's own normalisation becomes its first layer, its resizing does not.
"""

from __future__ import annotations

import importlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from torch import Tensor, nn

from clead.errors import UserError, one_line
from clead.models.encoder import Normalize


class Pretrained(nn.Module):
    """A library's classifier behind its own normalisation: images [B, C, H, W] in [0, 1] -> logits [B, K].

    Args:
        model: takes normalised images to logits, or to an output that has them as ``logits``.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize, self.model = Normalize(mean, std), model

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        out = self.model(self.normalize(x))
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits


def is_of_a_library(name: str) -> bool:
    """Whether ``name`` begins with one of the prefixes, which no function of the user's can have as its module."""
    return name.partition(":")[0] in _LIBRARIES


def open_pretrained(name: str, *, download: bool) -> Pretrained:
    """The model ``timm:NAME``, ``torchvision:NAME[.WEIGHTS]`` or ``hf:OWNER/NAME``, in float32 and eval mode.

    Args:
        name: the model; without WEIGHTS torchvision's own choice.
        download: whether the library may fetch what its cache does not have; otherwise nothing touches the network.

    Raises:
        UserError: the library is missing or broken, has no such model, or not all of its weights.
    """
    prefix, _, own_name = name.partition(":")
    library, load = _LIBRARIES[prefix]
    with nullcontext() if download else _offline():
        try:
            module = importlib.import_module(library)
        except ModuleNotFoundError as error:
            package = library.partition(".")[0]
            raise UserError(f"{name}: expected the library {package}, found no module {error.name}") from error
        except Exception as error:  # a torchvision of another torch raises RuntimeError
            raise UserError(f"{name}: expected a {library} that works, found {_said(error)}") from error
        try:
            return load(module, own_name, download).float().eval()
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        except Exception as error:  # each library has its own
            hint = "" if download else " and in its cache (--download fetches them)"
            raise UserError(f"{name}: expected weights known to {library}{hint}, found {_said(error)}") from error


def _timm(timm: Any, name: str, download: bool) -> Pretrained:
    model = timm.create_model(name, pretrained=True)
    return Pretrained(model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def _torchvision(models: Any, name: str, download: bool) -> Pretrained:
    architecture, _, tag = name.partition(".")
    known = models.get_model_weights(architecture)
    weights = known[tag] if tag else known.DEFAULT
    shown = weights.transforms()
    return Pretrained(models.get_model(architecture, weights=weights), shown.mean, shown.std)


def _transformers(transformers: Any, name: str, download: bool) -> Pretrained:
    local = {"local_files_only": not download}
    shown = transformers.AutoImageProcessor.from_pretrained(name, **local)
    if not shown.do_rescale or not math.isclose(shown.rescale_factor, 1 / 255, rel_tol=1e-3):
        raise UserError("expected a model of pixels in [0, 1], found a preprocessor that scales them otherwise")
    model, loaded = transformers.AutoModelForImageClassification.from_pretrained(
        name, output_loading_info=True, **local
    )
    untrained = sorted(map(str, {*loaded["missing_keys"], *loaded["mismatched_keys"]}))
    if untrained:  # transformers draws them at random
        raise UserError(f"expected a trained classifier, found no weights that fit {', '.join(untrained):.200}")
    channels = model.config.num_channels
    plain = ([0.0] * channels, [1.0] * channels)
    return Pretrained(model, *((shown.image_mean, shown.image_std) if shown.do_normalize else plain))


_LIBRARIES: dict[str, tuple[str, Callable[[Any, str, bool], Pretrained]]] = {
    "timm": ("timm", _timm),
    "torchvision": ("torchvision.models", _torchvision),
    "hf": ("transformers", _transformers),
}


@contextmanager
def _offline() -> Iterator[None]:
    """No name of a host is looked up; Hugging Face's hub, which would try again and again, is told."""
    lookup, told = socket.getaddrinfo, os.environ.get("HF_HUB_OFFLINE")
    socket.getaddrinfo = _refuse
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        socket.getaddrinfo = lookup
        if told is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = told


def _refuse(*_: object, **__: object) -> NoReturn:
    raise OSError("nothing is fetched without --download")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
