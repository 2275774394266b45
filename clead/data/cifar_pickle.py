"""Reading CIFAR's Python pickles without letting them run anything.

A pickle is a program, and Python's unpickler runs it: it may call any function it can name, or make a small file fill
the memory. Here the standard library only takes the file apart into operations; the few that an official batch consists
of are carried out by a reader of our own. Of names it knows those of an official batch, and has a harmless stand-in for
each that keeps the bytes: numpy itself is called afterwards, on checked values.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clead.errors import UserError

# An official batch takes two to eight for every image, and a few dozen beside. What an operation makes is small or part
# of the file, so that memory is bounded by about 80 bytes for each.
MOST_OPERATIONS, OPERATIONS_PER_IMAGE = 50_000, 50


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
        raise ValueError(f"bytes in the encoding {encoding!r:.20}")
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


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MARK = object()


class _Reader:
    """Puts the objects of a pickle together; calls nothing but the stand-ins above.

    Memory is at most a few times the size of the file: the number of operations is bounded, keys of dicts are text, and
    text is encoded at most once per byte of the file.
    """

    def __init__(self, data: bytes, most_operations: int) -> None:
        self.refused: str | None = None
        self._data = data
        self._most = most_operations
        self._encoded = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The object; anything may be raised on the way."""
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(self._data)
        for number, (opcode, argument, _) in enumerate(operations):
            if number > self._most:
                raise ValueError(f"more than {self._most:,} operations")
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in ("BINSTRING", "SHORT_BINSTRING"):  # of Python 2, which called bytes strings
                self._stack.append(argument.encode("latin1"))
            elif opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                getattr(self, f"_{opcode.name.lower()}", self._unknown)(opcode.name, argument)
        (result,) = self._stack
        return result

    def _unknown(self, name: str, _: Any) -> None:
        raise ValueError(f"the operation {name}")

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _mark(self, *_: Any) -> None:
        self._stack.append(_MARK)

    def _tuple(self, *_: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _tuple1(self, name: str, _: Any) -> None:
        count = int(name[-1])
        self._stack[-count:] = [tuple(self._stack[-count:])]

    _tuple2 = _tuple3 = _tuple1

    def _append(self, *_: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, *_: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError("items for something that is no list")
        self._stack[-1].extend(items)

    def _setitem(self, *_: Any) -> None:
        self._update([self._stack.pop(-2), self._stack.pop()])

    def _setitems(self, *_: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict) or not all(isinstance(key, (str, bytes)) for key in items[::2]):
            raise TypeError("items for something that is no dict with words for keys")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _global(self, _: str, argument: str) -> None:
        module, name = argument.split(" ")
        if (module, name) not in _ADMITTED:
            self.refused = f"{module}.{name}"
            raise ValueError(f"refused {self.refused}")
        self._stack.append(_ADMITTED[module, name])

    def _stack_global(self, *_: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global("", f"{module} {name}")

    def _reduce(self, *_: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function not in _ADMITTED.values():
            raise TypeError("a call of something that is no name")
        if function is _encode:
            self._encoded += len(arguments[0])
            if self._encoded > len(self._data):
                raise ValueError("more text than the file has")
        self._stack.append(function(*arguments))

    def _build(self, *_: Any) -> None:
        state = self._stack.pop()
        if not isinstance(self._stack[-1], (_Array, _Dtype)):
            raise TypeError("a state for something that has none")
        self._stack[-1].__setstate__(state)


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
    reader = _Reader(path.read_bytes(), MOST_OPERATIONS + OPERATIONS_PER_IMAGE * images)
    try:
        batch = reader.load()
    except Exception as error:  # damaged bytes may raise anything
        if reader.refused:
            found = f"{reader.refused:.80}, which is refused"
            raise UserError(f"{path}: expected only arrays, lists, numbers and strings, found {found}") from error
        raise UserError(f"{path}: expected a complete pickle, found damage ({error!r:.200})") from error
    if not isinstance(batch, dict):
        raise UserError(f"{path}: expected a dict with data and {labels}, found {type(batch).__name__}")
    fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if not {"data", labels} <= fields.keys():
        found = reprlib.repr(sorted(map(str, fields)))
        raise UserError(f"{path}: expected a dict with data and {labels}, found the keys {found}")
    column, pixels = _labels(path, fields[labels], images), _pixels(path, fields["data"], images)
    return np.concatenate([column[:, None], pixels], axis=1)


def _labels(path: Path, labels: object, images: int) -> npt.NDArray[np.uint8]:
    if not isinstance(labels, list) or len(labels) != images:
        found = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise UserError(f"{path}: expected a list of {images:,} labels, found {found}")
    for index, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 255:
            raise UserError(f"{path}: expected labels from 0 on, found {reprlib.repr(label)} at image {index:,}")
    return np.array(labels, np.uint8)


def _pixels(path: Path, array: object, images: int) -> npt.NDArray[np.uint8]:
    expected = f"{path}: expected data to be a uint8 array of shape ({images}, 3072), found"
    if not isinstance(array, _Array):
        raise UserError(f"{expected} {type(array).__name__}")
    dtype = array.dtype.name if isinstance(array.dtype, _Dtype) else array.dtype
    if dtype not in ("u1", "|u1", "uint8") or array.shape != (images, 3072) or array.order not in ("C", "F"):
        raise UserError(
            f"{expected} {dtype if isinstance(dtype, str) else reprlib.repr(dtype)} {reprlib.repr(array.shape)}"
        )
    if not isinstance(array.data, (bytes, bytearray)) or len(array.data) != images * 3072:
        raise UserError(f"{expected} an array that misses its pixels")
    flat = np.frombuffer(array.data, np.uint8)
    return flat.reshape(images, 3072) if array.order == "C" else np.ascontiguousarray(flat.reshape(3072, images).T)
