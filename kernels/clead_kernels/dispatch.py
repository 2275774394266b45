"""Which implementation runs: one table of what each supports, and the choice made from it.

``impl`` names how an op is computed, never what it computes: ``"reference"`` (short eager PyTorch, the
specification), ``"triton"``, ``"native"`` (C++ or CUDA, chosen by the tensor's device) or ``"auto"``. A named
implementation never falls back silently; only ``"auto"`` chooses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from . import _native

Impl = Literal["auto", "reference", "triton", "native"]

_IMPLS = get_args(Impl)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CONTRASTIVE = ("info_nce", "nt_xent", "sup_con", "clip_loss")
_TRITON_RULES = (
    ("topk", ("no", "up to 255")),
    ("width", ("up to 512",)),
    ("debias", ("no",)),
    ("hard_negative_beta", ("no",)),
    ("metric", ("cosine",)),
)
_SIXTEENS = ("channels", ("multiples of 16",))
# Triton decides at its first import whether it compiles or interprets, so this must be known before.
_TRITON_DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Support:
    """What one implementation of one op can do.

    Attributes:
        op: public name of the op.
        impl: ``"reference"``, ``"triton"`` or ``"native"``.
        devices: device types; empty = any device PyTorch runs on.
        dtypes: dtypes of the tensors.
        features: (name, allowed values) pairs, e.g. ``("norm", ("linf",))``; a feature not named is not restricted.
    """

    op: str
    impl: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = _FLOATS
    features: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def covers(self, device: torch.device, dtype: torch.dtype, features: dict[str, str]) -> bool:
        """Whether this row admits the device, the dtype and every feature asked for."""
        if self.devices and device.type not in self.devices:
            return False
        if dtype not in self.dtypes:
            return False
        return all(features.get(name, _USUAL.get(name, values[0])) in values for name, values in self.features)

    def __str__(self) -> str:
        parts = ["any device" if not self.devices else ", ".join(self.devices), ", ".join(map(_short, self.dtypes))]
        parts += [f"{name} {', '.join(values)}" for name, values in self.features]
        return f"{self.impl} ({'; '.join(parts)})"


# Where the reference, which holds several matrices of all pairs, is no choice whatever its speed.
_LARGE = (("matrix", ("above 1 GiB",)),)
_LARGE_CALL, _USUAL = {"matrix": "above 1 GiB"}, {"matrix": "up to 1 GiB"}

# The table. Within one op the order is the preference of impl="auto": the first row that covers the call and whose
# implementation is present here. An implementation stands above another only where it was measured to be faster, or
# where the other needs gigabytes that it does not.
SUPPORT: tuple[Support, ...] = (
    *(Support(op, "native", devices=("cpu",)) for op in _CONTRASTIVE),
    *(Support(op, "triton", ("cuda",), _TRITON_DTYPES, _TRITON_RULES + _LARGE) for op in _CONTRASTIVE),
    *(Support(op, "reference") for op in _CONTRASTIVE),
    *(Support(op, "triton", _TRITON_DEVICES, _TRITON_DTYPES, _TRITON_RULES) for op in _CONTRASTIVE),
    Support("instance_margin", "native", devices=("cpu",), dtypes=_FLOATS[:2]),
    Support("instance_margin", "triton", ("cuda",), _TRITON_DTYPES, (("width", ("up to 512",)), *_LARGE)),
    Support("instance_margin", "reference"),
    Support("instance_margin", "native", devices=("cpu",), dtypes=_FLOATS[2:]),
    Support("instance_margin", "triton", _TRITON_DEVICES, _TRITON_DTYPES, (("width", ("up to 512",)),)),
    Support("sigmoid_loss", "native", devices=("cpu",)),
    Support("sigmoid_loss", "reference"),
    Support("similarity", "native", devices=("cpu",)),
    Support("similarity", "reference"),
    Support("similarity", "triton", _TRITON_DEVICES, _TRITON_DTYPES, (("width", ("up to 512",)),)),
    Support("similarity_topk", "native", devices=("cpu",)),
    Support("similarity_topk", "reference"),
    Support(
        "similarity_topk", "triton", _TRITON_DEVICES, _TRITON_DTYPES, (("k", ("up to 256",)), ("width", ("up to 512",)))
    ),
    *(
        Support(op, impl, devices, features=(("norm", ("linf", "l2", "l1")),))
        for op in ("pgd_step_", "random_start_", "project_")
        for impl, devices in (("native", ("cpu",)), ("reference", ()), ("native", ("cuda",)))
    ),
    Support("conv3x3", "native", ("cpu",), _FLOATS[:2], (_SIXTEENS, ("tiles", ("many",)))),
    Support("conv3x3", "reference"),
    Support("conv3x3", "native", ("cpu",), _FLOATS[:2], (_SIXTEENS,)),
    Support("augment", "native", devices=("cpu",), dtypes=(*_FLOATS, torch.uint8)),
    Support("augment", "reference", dtypes=(*_FLOATS, torch.uint8)),
    Support(
        "augment",
        "triton",
        _TRITON_DEVICES,
        (*_TRITON_DTYPES, torch.uint8),
        (("order", ("one geometry, colours before or after it",)),),
    ),
)

OPS: tuple[str, ...] = tuple(dict.fromkeys(row.op for row in SUPPORT))
_ROWS = {op: tuple(row for row in SUPPORT if row.op == op) for op in OPS}


def resolve(op: str, impl: str, *, device: torch.device | str, dtype: torch.dtype, **features: str) -> str:
    """The implementation that runs ``op`` for these tensors.

    Args:
        op: public name, one of ``OPS``.
        impl: ``"auto"`` takes the first row of the table that can; a name is taken or refused.
        device: device of the tensors; only its type matters.
        dtype: dtype of the tensors.
        **features: what else the call needs, e.g. ``norm="linf"``.

    Returns:
        ``"reference"``, ``"triton"`` or ``"native"``.

    Raises:
        ValueError: unknown op or impl.
        NotImplementedError: no implementation, or not the named one, can do it; quotes the table's rows.
    """
    rows = _rows(op)
    if impl not in _IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, _IMPLS))}, got {impl!r}")
    device = torch.device(device)
    for row in rows:
        if impl in ("auto", row.impl) and row.covers(device, dtype, features) and _absence(row.impl, device) is None:
            return row.impl
    # A large matrix is a preference, never a reason to refuse.
    rows = tuple(row for row in rows if row.features[-1:] != _LARGE)
    wanted = (f"{name}={value}" for name, value in features.items() if name not in _USUAL)
    asked = ", ".join([device.type, _short(dtype), *wanted])
    message = f"impl={impl!r} cannot run {op} on {asked}; {op} has {' and '.join(map(str, rows))}"
    reason = _absence(impl, device) if any(row.impl == impl for row in rows) else None
    raise NotImplementedError(f"{message}; {impl} is absent here: {reason}" if reason else message)


def matrix(rows: int, columns: int) -> dict[str, str]:
    """The feature of a call that has ``rows`` x ``columns`` pairs: whether their matrix in float32 is a large one."""
    return _LARGE_CALL if 4 * rows * columns > 2**30 else _USUAL


def check(ops: Iterable[str], impl: str, device: torch.device | str, dtype: torch.dtype, **features: str) -> None:
    """Refuse ``impl`` now if it cannot run every op of ``ops``, instead of in the middle of a run.

    Raises:
        ValueError: unknown op or impl.
        NotImplementedError: as ``resolve``, for the first op that cannot run.
    """
    for op in ops:
        resolve(op, impl, device=device, dtype=dtype, **features)


def explain(op: str | None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Which implementation ``impl="auto"`` takes here, and why: a text to print.

    Args:
        op: public name of one op; None = all.
        device: device the tensors would be on.
        dtype: dtype the tensors would have.

    Returns:
        One line per op with the choice, and below it one line per implementation with what it supports and whether
        it is present.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be one that torch.device takes, got {device!r}") from None
    return "\n".join(line for name in ([op] if op else OPS) for line in _explain_one(name, device, dtype))


def _explain_one(op: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    rows, details, taken = _rows(op), [], ""
    for row in rows:
        usual, large = row.covers(device, dtype, _USUAL), row.covers(device, dtype, _LARGE_CALL)
        absence = _absence(row.impl, device)
        if not usual and not large:
            state = f"not for {device.type} {_short(dtype)}"
        elif absence is not None:
            state = f"absent here: {absence}"
        elif not usual:
            state = "taken for a matrix of pairs this large"
        else:
            state = "available" if taken else "taken"
            taken = taken or row.impl
        details.append(f"    {row}: {state}")
    return [f"{op} on {device.type} {_short(dtype)}: {taken or 'none'}", *details]


def _rows(op: str) -> tuple[Support, ...]:
    rows = _ROWS.get(op)
    if rows is None:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    return rows


def _absence(impl: str, device: torch.device) -> str | None:
    """Why ``impl`` cannot be used in this process for tensors on ``device``, or None if it can."""
    if impl == "triton":
        return None if find_spec("triton") else "Triton is not installed"
    if impl != "native":
        return None
    if not _native.available():
        return _native.why_absent() or "the extension clead_kernels._C is not built"
    if device.type == "cuda" and _native.build_info().get("cuda", "none") == "none":
        return "the extension was built without CUDA: CLEAD_CUDA=1 pip install --no-build-isolation -e ."
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
