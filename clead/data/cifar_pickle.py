"""Reading CIFAR's Python pickles without letting them run anything.

A pickle may call any function it can name. This reader knows only the few names an official batch contains, and gives
each a harmless stand-in that keeps the bytes: numpy itself is called after unpickling, on checked values.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clead.errors import UserError


class _Array:
    """Stands in for numpy.ndarray: keeps its state, computes nothing."""

    shape: object = ()
    dtype: object = None
    order: object = "C"
    data: object = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"


class _Dtype:
    """Stands in for numpy.dtype: keeps its name."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for bytes."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.data, array.dtype, array.shape, array.order = data, dtype, shape, order
    return array


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes from Python 3; numpy only ever says latin1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Admits the names of an official batch; what it refused is in ``refused``."""

    refused: str | None = None

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        self.refused = f"{module}.{name}"
        raise pickle.UnpicklingError(f"refused {self.refused}")


def read_pickle(path: Path, images: int, labels: str = "labels") -> npt.NDArray[np.uint8]:
    """One batch as the rows of the binary form.

    Args:
        path: file whose size has been checked.
        images: number of images it must hold.
        labels: key of the labels.

    Returns:
        uint8 [images, 3073]: the label, then the red, green and blue planes.

    Raises:
        UserError: the file is no pickle of a batch, or names something no batch contains.
    """
    unpickler = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes")
    try:
        batch = unpickler.load()
    except Exception as error:  # unpickling damaged bytes may raise anything
        if unpickler.refused:
            raise UserError(
                f"{path}: expected only arrays, lists, numbers and strings, found {unpickler.refused}, which is refused"
            ) from error
        raise UserError(f"{path}: expected a complete pickle, found damage ({error!r})") from error
    if not isinstance(batch, dict):
        raise UserError(f"{path}: expected a dict with data and {labels}, found {type(batch).__name__}")
    fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if not {"data", labels} <= fields.keys():
        raise UserError(f"{path}: expected a dict with data and {labels}, found the keys {sorted(map(str, fields))}")
    column, pixels = _labels(path, fields[labels], images), _pixels(path, fields["data"], images)
    return np.concatenate([column[:, None], pixels], axis=1)


def _labels(path: Path, labels: object, images: int) -> npt.NDArray[np.uint8]:
    if not isinstance(labels, list) or len(labels) != images:
        found = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise UserError(f"{path}: expected a list of {images:,} labels, found {found}")
    for index, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 255:
            raise UserError(f"{path}: expected labels from 0 on, found {label!r} at image {index:,}")
    return np.array(labels, np.uint8)


def _pixels(path: Path, array: object, images: int) -> npt.NDArray[np.uint8]:
    expected = f"{path}: expected data to be a uint8 array of shape ({images}, 3072), found"
    if not isinstance(array, _Array):
        raise UserError(f"{expected} {type(array).__name__}")
    dtype = array.dtype.name if isinstance(array.dtype, _Dtype) else array.dtype
    if dtype not in ("u1", "|u1", "uint8") or array.shape != (images, 3072) or array.order not in ("C", "F"):
        raise UserError(f"{expected} {dtype} {array.shape}")
    if not isinstance(array.data, (bytes, bytearray)) or len(array.data) != images * 3072:
        raise UserError(f"{expected} an array that misses its pixels")
    flat = np.frombuffer(array.data, np.uint8)
    return flat.reshape(images, 3072) if array.order == "C" else np.ascontiguousarray(flat.reshape(3072, images).T)
