"""AutoAttack and its parts, from the library ``pyautoattack``, held so that it leaves nothing behind.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690; l1 after arXiv:2103.01208. The library reseeds torch's global generator, takes the tracer of
coverage and debuggers away, leaves gradients on parameters and crashes below four classes; ``autoattack`` prevents it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clead.attacks.objective import frozen
from clead.errors import UserError

VERSION = "0.2.0"
PARTS = {
    "apgd_ce": ("apgd-ce",),
    "apgd_dlr": ("apgd-dlr",),
    "apgd_t": ("apgd-t",),
    "fab": ("fab-t",),
    "square": ("square",),
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
}
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
_FLAGS = {
    "randomized defense": "random_outputs",
    "probability distribution": "softmax_outputs",
    "zero gradient": "zero_gradients",
    "Square Attack has decreased": "square_improves",
    "dynamic defense": "dynamic",
}
# sha256 of the files of pyautoattack 0.2.0 that are imported: nobody vouches for who uploads the next ones.
_FILES = {
    "__init__.py": "26a948745c522f544137eb49fb59ce48f603eb6e7819428baf79a20adad91b30",
    "autoattack.py": "d0f616e9e53a71843335b4e610830e95ba9f87533a6cd888fbb4a551a06ad4a5",
    "autopgd_base.py": "6913041e2d8e94b72e659c9ea5452eb7d3476f24f32d227cdaae025c6db3c256",
    "checks.py": "2409841e2b5f985cf8aeea6dc855f69fc478261c9d9b6429e9d369194f70150b",
    "fab_base.py": "63654f228a57b5ff56babd6ed3d1ddd0724827e8a210a48ba0d76cbc35333a5b",
    "fab_projections.py": "d2e095000c0ecd85f0eb22605465636487259c57147b4b2bd091c6ea86fb5bde",
    "fab_pt.py": "2ad605c1a161fbdc0109f4018760ffb2a10a63de6e218063bb33621e00013d1e",
    "other_utils.py": "a06a038ab1ca59a2d8f09642b9a4e7f6e9b249cd8e6c6a9cbd308f47649268df",
    "square.py": "bd5c61d3b43d3b55b74b059477b74061a399a0f5f384cb51af91216682e247ae",
    "state.py": "53985fbb8f8b062ec4e2b6868ec10702c3167ca16c397ce8bbfbc3e3b52dcc21",
}


def available() -> bool:
    """Whether the library is installed, of whatever version."""
    return importlib.util.find_spec("pyautoattack") is not None


def autoattack(
    module: nn.Module,
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    attack: str,
    norm: str,
    eps: float,
    seed: int,
    batch_size: int,
) -> tuple[Tensor, tuple[str, ...]]:
    """The strongest of x and what the parts of ``attack`` find, each tried on what the ones before left standing.

    The library seeds itself anew for every batch, so a result depends on ``batch_size``.

    Args:
        module: the module behind ``logits``; comes back as it was.
        logits: [B, C, H, W] in [0, 1] -> [B, K].
        x: clean images [N, C, H, W] in [0, 1], float32.
        labels: int64 [N].
        attack: a key of PARTS.
        norm: "linf", "l2" or "l1".
        eps: radius, above 0.
        seed: of the library's random numbers.
        batch_size: images at once.

    Returns:
        x_adv [N, C, H, W], x where nothing was found; and the library's warnings as flags.

    Raises:
        UserError: the library is absent or not the one that was checked, or there are too few classes.
    """
    library = load_library()
    with frozen(module), torch.no_grad():
        classes = logits(x[:1]).shape[1]
    parts = [part for part in PARTS[attack] if classes >= _LEAST_CLASSES.get(part, 2)]
    if not parts:
        raise UserError(f"{attack} needs {_LEAST_CLASSES[PARTS[attack][0]]} classes or more, got {classes}")
    left_out = tuple(f"without {part}" for part in PARTS[attack] if part not in parts)
    with frozen(module), _untouched(x.device), _heard() as warnings:
        runner = library.AutoAttack(_Logits(logits), norm=_NORMS[norm], eps=eps, seed=seed, device=x.device)
        runner.attacks_to_run = parts
        for targeted in (runner.apgd_targeted, runner.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
        x_adv, _ = runner.run_standard_evaluation(x, labels, batch_size=min(batch_size, len(x)))
    return x_adv.detach(), (*left_out, *dict.fromkeys(warnings))


class _Logits(nn.Module):
    """A function as the module that the library asks for."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(x)


def load_library() -> Any:
    """The module ``pyautoattack``; a UserError if it is absent, or not the one that was checked."""
    spec = importlib.util.find_spec("pyautoattack")
    if spec is None or spec.origin is None:
        raise UserError(
            f"autoattack, apgd, fab and square need the library pyautoattack {VERSION}, found none: "
            f"pip install pyautoattack=={VERSION}"
        )
    if "pyautoattack" not in sys.modules:
        for name, expected in _FILES.items():
            file = Path(spec.origin).parent / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
                raise UserError(f"{file}: expected the file of pyautoattack {VERSION}, found another or none")
    return importlib.import_module("pyautoattack")


@contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """Torch's generators, the tracer and the library's own counters come back as they were."""
    checks = importlib.import_module("pyautoattack.checks")
    tracer = sys.gettrace()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # or one dynamic model would taint all later ones
            yield
    finally:
        sys.settrace(tracer)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The library's warnings as flags; its log goes nowhere else meanwhile."""
    flags: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if "classes it is not possible" in message:  # what is not possible was left out
                return
            known = (flag for words, flag in _FLAGS.items() if words in message)
            flags.append(next(known, f"pyautoattack: {message}"))

    log, listener = logging.getLogger("auto-attack"), Listener(logging.WARNING)
    propagate, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        yield flags
    finally:
        log.removeHandler(listener)
        log.propagate = propagate
