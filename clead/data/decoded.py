"""Image files decoded once into one array on disk, which is read through a memory map ever after."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from clead.errors import UserError, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
# More than any photograph of the data sets here; a file that unpacks to more is refused before it is decoded.
MAX_PIXELS = 100_000_000
VERSION = 1  # of what becomes of a file; part of the array's name


def decode(files: Sequence[Path], size: int, name: str) -> Tensor:
    """The images as uint8 [N, 3, size, size], in the files' order, RGB.

    The shorter side is resized to ``size``, and the centre kept. The array is kept in the folder that the environment
    variable CLEAD_CACHE names, else in the user's cache folder, and made anew when a file was added, removed or
    changed; it may be larger than memory.

    Args:
        files: images in one of FORMATS.
        size: height and width.
        name: of the array, for people.

    Raises:
        UserError: a file is no image or too large, or the array cannot be written or is larger than what is free.
    """
    path = _cache_folder() / f"{name}-{size}-{_digest(files)}.npy"
    try:
        if not path.exists():
            _decode_into(path, files, size, name)
        array = np.lib.format.open_memmap(path, mode="c")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected to keep the decoded images there, found {error}") from error
    if array.shape != (len(files), 3, size, size) or array.dtype != np.uint8:
        raise UserError(f"{path}: expected {len(files)} images of {size}x{size}, found {array.shape}; delete it")
    return torch.from_numpy(array)


def _cache_folder() -> Path:
    import pooch

    return Path(os.environ.get("CLEAD_CACHE") or pooch.os_cache("clead"))


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.sha256(f"{VERSION}".encode())
    for file in files:
        status = file.stat()
        found.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return found.hexdigest()[:16]


def _decode_into(path: Path, files: Sequence[Path], size: int, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(files), 3, size, size)
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path.parent}: expected {needed:,} bytes free for the decoded images of {name}, found {free:,}; "
            "the environment variable CLEAD_CACHE names another folder"
        )
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as temporary:
        staged = Path(temporary, path.name)
        array = np.lib.format.open_memmap(staged, mode="w+", dtype=np.uint8, shape=shape)
        # A map over a file with holes dies of SIGBUS on a full disk; reserved, it fails here and says why.
        with open(staged, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, staged.stat().st_size)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            decoded = pool.map(lambda file: _image(file, size), files)
            shown = track(
                decoded, f"decoding {name}", total=len(files), console=Console(stderr=True), disable=len(files) < 1000
            )
            for row, image in enumerate(shown):
                array[row] = image
        array.flush()
        staged.replace(path)


def _image(path: Path, size: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {width}x{height}")
            scale = size / min(width, height)
            shape = (max(size, round(width * scale)), max(size, round(height * scale)))
            if shape[0] * shape[1] > MAX_PIXELS:  # a strip, whose short side would be blown up
                raise UserError(
                    f"{path}: expected less of a strip than {width}x{height} to be made {size} wide or high"
                )
            rgb = image.convert("RGB")
            if rgb.size != shape:
                rgb = rgb.resize(shape, Image.Resampling.BILINEAR, reducing_gap=3.0)
            left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
            return np.asarray(rgb.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise anything
        raise UserError(
            f"{path}: expected an image ({', '.join(FORMATS)}), found damage ({one_line(error)})"
        ) from error
