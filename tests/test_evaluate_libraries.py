"""Models by the names of libraries, with stand-ins for the libraries: none of them is a dependency."""

import os
import socket
import sys
from enum import Enum
from types import SimpleNamespace

import pytest
import torch

from clead.errors import UserError
from clead.evaluate.libraries import open_pretrained

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.25)


class Means(torch.nn.Module):
    """Logits are the mean of every channel; ``wrapped`` has them where Hugging Face's models do."""

    def __init__(self, wrapped=False):
        super().__init__()
        self.wrapped, self.dropout = wrapped, torch.nn.Dropout(0.9)
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))
        self.pretrained_cfg = {"mean": MEAN, "std": STD}
        self.config = SimpleNamespace(num_channels=3)

    def forward(self, x):
        logits = self.dropout(x.mean((2, 3))) * self.scale
        return SimpleNamespace(logits=logits) if self.wrapped else logits


def look_up():
    """What a library does before it fetches anything; here without a network."""
    found = os.environ.get("HF_HUB_OFFLINE")
    assert found == "1" or socket.getaddrinfo is recorder, "told to fetch nothing, yet let to"
    socket.create_connection(("weights.example.org", 443))


def recorder(*_, **__):
    raise ConnectionError("looked up")


class Weights(Enum):
    OLD = SimpleNamespace(transforms=lambda: SimpleNamespace(mean=list(MEAN), std=list(STD)))
    NEW = SimpleNamespace(transforms=lambda: SimpleNamespace(mean=[0.0] * 3, std=[1.0] * 3))
    DEFAULT = NEW

    @property
    def transforms(self):
        return self.value.transforms


@pytest.fixture
def libraries(monkeypatch):
    """All three; a model called ``far`` is not in their caches, ``none`` does not exist."""

    def known(name, *_, **options):
        if name.endswith("none"):
            raise ValueError("Unknown\nmodel")
        if name.endswith("far"):
            look_up()
        return Means()

    def processor(name, **_):
        scale = 1 / 127.5 if name.endswith("signed") else 1 / 255
        plain = name.endswith("plain")
        return SimpleNamespace(
            do_rescale=True, rescale_factor=scale, do_normalize=not plain, image_mean=MEAN, image_std=STD
        )

    def classifier(name, *, output_loading_info, local_files_only):
        assert output_loading_info
        if name.endswith("far") and local_files_only:  # as the library does it
            raise OSError("nothing is fetched")
        known(name)
        missing = {"head.weight"} if name.endswith("encoder") else set()
        return Means(wrapped=True), {"missing_keys": missing, "mismatched_keys": set()}

    def builds(name, **options):
        model = known(name)
        model.weights = options["weights"]
        return model

    timm = SimpleNamespace(create_model=lambda name, pretrained: known(name) if pretrained else None)
    models = SimpleNamespace(get_model_weights=lambda name: known(name) and Weights, get_model=builds)
    transformers = SimpleNamespace(
        AutoImageProcessor=SimpleNamespace(from_pretrained=processor),
        AutoModelForImageClassification=SimpleNamespace(from_pretrained=classifier),
    )
    fakes = {"timm": timm, "torchvision": SimpleNamespace(models=models), "torchvision.models": models}
    for name, fake in {**fakes, "transformers": transformers}.items():
        monkeypatch.setitem(sys.modules, name, fake)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("timm:thing.tag", MEAN, STD),
        ("torchvision:thing.OLD", MEAN, STD),
        ("torchvision:thing", (0.0,) * 3, (1.0,) * 3),
        ("hf:owner/thing", MEAN, STD),
        ("hf:owner/plain", (0.0,) * 3, (1.0,) * 3),
    ],
)
def test_pixels_are_normalised_as_the_model_wants_them(name, mean, std, libraries):
    model = open_pretrained(name, download=False)
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(x[:, c].mean((1, 2)) - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(model(x), expected)
    assert not model.training and model.model.scale.dtype == torch.float32


@pytest.mark.parametrize("name", ["timm:far", "torchvision:far", "hf:owner/far"])
def test_nothing_is_fetched_without_consent(name, libraries, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before = socket.getaddrinfo
    if name != "hf:owner/far":
        with pytest.raises(
            UserError, match=r"in its cache \(--download fetches them\), found OSError: nothing is fetc"
        ):
            open_pretrained(name, download=False)
    assert socket.getaddrinfo is before and "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setattr(socket, "getaddrinfo", recorder)
    with pytest.raises(UserError, match="found ConnectionError: looked up"):
        open_pretrained(name, download=True)


def test_the_users_own_word_to_the_hub_stays(libraries, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    open_pretrained("timm:thing", download=False)
    assert os.environ["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:none", "timm:none: expected weights known to timm and in its cache .* found ValueError: Unknown model$"),
        ("torchvision:thing.BAD", "expected weights known to torchvision.models .* found KeyError: 'BAD'"),
        ("hf:owner/none", "expected weights known to transformers"),
        ("hf:owner/encoder", "hf:owner/encoder: expected a trained classifier, found no weights that fit head.weight"),
        ("hf:owner/signed", r"expected a model of pixels in \[0, 1\], found a preprocessor that scales them otherwise"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(name, message, libraries):
    with pytest.raises(UserError, match=message):
        open_pretrained(name, download=False)


def test_a_missing_or_broken_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm:thing: expected the library timm, found no module timm"):
        open_pretrained("timm:thing", download=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"a torchvision\.models that works, found RuntimeError: operator nms does not"):
        open_pretrained("torchvision:thing", download=False)
