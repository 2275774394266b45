"""CIFAR-10 in its official forms, eight images per batch instead of ten thousand."""

import numpy as np
import pytest

from clead.data import cifar10

IMAGES = 8


@pytest.fixture
def rows(monkeypatch):
    """The binary rows of every batch, by name; every class occurs in training."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", IMAGES)
    monkeypatch.setattr(cifar10, "PICKLE_OVERHEAD", 20_000)
    monkeypatch.setattr(cifar10, "SHA256", {})
    generator = np.random.default_rng(0)
    batches = generator.integers(0, 256, (len(cifar10.BATCHES), IMAGES, 3073), dtype=np.uint8)
    batches[:, :, 0] = (np.arange(batches.shape[0] * IMAGES) % 10).reshape(-1, IMAGES)
    return dict(zip(cifar10.BATCHES, batches, strict=True))


@pytest.fixture
def binary_dir(tmp_path, rows):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, batch in rows.items():
        (folder / f"{name}.bin").write_bytes(batch.tobytes())
    return folder
