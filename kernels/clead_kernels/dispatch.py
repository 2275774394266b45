"""Which implementation runs: one table of what each supports, and the choice made from it.

``impl`` names how an op is computed, never what it computes: ``"reference"`` (short eager PyTorch, the
specification), ``"triton"``, ``"native"`` (C++ or CUDA, chosen by the tensor's device) or ``"auto"``. A named
implementation never falls back silently; only ``"auto"`` chooses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from . import _native, _trial

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
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton decides at its first import whether it compiles or interprets, so this must be known before.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Support:
    """What one implementation of one op can do.

    Attributes:
        op: public name of the op.
        impl: ``"reference"``, ``"triton"`` or ``"native"``.
        devices: device types; empty = any device PyTorch runs on.
        dtypes: dtypes of the tensors.
        features: (name, allowed values) pairs, e.g. ``("norm", ("linf",))``; a feature not named is not restricted.
        on_trial: whether ``"auto"`` takes it only after a first call that agreed with the reference; see ``_trial``.
    """

    op: str
    impl: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = _FLOATS
    features: tuple[tuple[str, tuple[str, ...]], ...] = ()
    on_trial: bool = False

    def covers(self, device: torch.device, dtype: torch.dtype, features: dict[str, str]) -> bool:
        """Whether this row admits the device, the dtype and every feature asked for."""
        if self.devices and device.type not in self.devices:
            return False
        if dtype not in self.dtypes:
            return False
        return all(features.get(name, values[0]) in values for name, values in self.features)

    def __str__(self) -> str:
        parts = ["any device" if not self.devices else ", ".join(self.devices), ", ".join(map(_short, self.dtypes))]
        parts += [f"{name} {', '.join(values)}" for name, values in self.features]
        return f"{self.impl} ({'; '.join(parts)})"


def _triton(
    op: str, *features: tuple[str, tuple[str, ...]], dtypes: tuple[torch.dtype, ...] = _TRITON_DTYPES
) -> tuple[Support, ...]:
    """The reference of an op, and its Triton kernels: first on a GPU, last where they are interpreted."""
    compiled = Support(op, "triton", ("cuda",), dtypes, features, on_trial=True)
    reference = Support(op, "reference", dtypes=(*_FLOATS, *(dtype for dtype in dtypes if dtype not in _FLOATS)))
    return compiled, reference, *((replace(compiled, devices=("cpu",), on_trial=False),) if _INTERPRETED else ())


# The table. Within one op the order is the preference of impl="auto": the first row that covers the call and whose
# implementation is present here. On the CPU an implementation stands above another only where it was measured to be
# faster. Kernels for a GPU stand above the reference on trial: what they compute there is looked at, once.
SUPPORT: tuple[Support, ...] = (
    *(Support(op, "native", devices=("cpu",)) for op in _CONTRASTIVE),
    *(row for op in _CONTRASTIVE for row in _triton(op, *_TRITON_RULES)),
    Support("instance_margin", "native", devices=("cpu",), dtypes=_FLOATS[:2]),
    *_triton("instance_margin", ("width", ("up to 512",))),
    Support("instance_margin", "native", devices=("cpu",), dtypes=_FLOATS[2:]),
    Support("sigmoid_loss", "native", devices=("cpu",)),
    Support("sigmoid_loss", "reference"),
    Support("similarity", "native", devices=("cpu",)),
    *_triton("similarity", ("width", ("up to 512",))),
    Support("similarity_topk", "native", devices=("cpu",)),
    *_triton("similarity_topk", ("k", ("up to 256",)), ("width", ("up to 512",))),
    *(
        Support(op, impl, devices, features=(("norm", ("linf", "l2", "l1")),), on_trial=devices == ("cuda",))
        for op in ("pgd_step_", "random_start_", "project_")
        for impl, devices in (("native", ("cpu",)), ("native", ("cuda",)), ("reference", ()))
    ),
    Support("conv3x3", "native", ("cpu",), _FLOATS[:2], (_SIXTEENS, ("tiles", ("many",)))),
    Support("conv3x3", "reference"),
    Support("conv3x3", "native", ("cpu",), _FLOATS[:2], (_SIXTEENS,)),
    Support("augment", "native", devices=("cpu",), dtypes=(*_FLOATS, torch.uint8)),
    *_triton(
        "augment",
        ("order", ("one geometry, colours before or after it",)),
        dtypes=(*_TRITON_DTYPES, torch.uint8),
    ),
)

OPS: tuple[str, ...] = tuple(dict.fromkeys(row.op for row in SUPPORT))
_ROWS = {op: tuple(row for row in SUPPORT if row.op == op) for op in OPS}


def resolve(op: str, impl: str, *, device: torch.device | str, dtype: torch.dtype, **features: str) -> str:
    """The implementation that runs ``op`` for these tensors; one on trial may turn out to be the reference.

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
    return find(op, impl, device=device, dtype=dtype, **features).impl


def find(op: str, impl: str, *, device: torch.device | str, dtype: torch.dtype, **features: str) -> Support:
    """The row of the table with the implementation that ``resolve`` names."""
    rows = _rows(op)
    if impl not in _IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, _IMPLS))}, got {impl!r}")
    device = torch.device(device)
    for row in rows:
        if impl in ("auto", row.impl) and row.covers(device, dtype, features) and _absence(row.impl, device) is None:
            return row
    wanted = (f"{name}={value}" for name, value in features.items())
    asked = ", ".join([device.type, _short(dtype), *wanted])
    message = f"impl={impl!r} cannot run {op} on {asked}; {op} has {' and '.join(map(str, rows))}"
    reason = _absence(impl, device) if any(row.impl == impl for row in rows) else None
    raise NotImplementedError(f"{message}; {impl} is absent here: {reason}" if reason else message)


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
        it is present. On a GPU kernels are taken after a first call of each kind that agrees with the reference; the
        text says what calls of this process have found.
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
        absence = _absence(row.impl, device)
        state = "available" if taken else "taken"
        if not row.covers(device, dtype, {}):
            state = f"not for {device.type} {_short(dtype)}"
        elif absence is not None:
            state = f"absent here: {absence}"
        elif not taken and row.on_trial:
            passed, found = _trial.report(op, row.impl, device, dtype)
            state = found or "taken after a first call that agrees with the reference"
            taken = row.impl if passed else ""
        else:
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
