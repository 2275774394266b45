"""Loads the compiled extension ``clead_kernels._C``, or says in one sentence why it is absent.

Importing the extension registers its kernels under ``torch.ops.clead``; nothing in Python calls it. The package works
without it, so a broken build is a sentence in ``why_absent`` and never an ImportError.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

# The extension has no path to torch's libraries: it finds them because they are loaded already.
import torch  # noqa: F401

BUILD_COMMAND = "pip install --no-build-isolation -e ."


def available() -> bool:
    """Whether the extension is loaded."""
    return _module is not None


def why_absent() -> str | None:
    """One sentence on why the extension is not loaded; None if it is."""
    return _reason


def build_info() -> dict[str, str]:
    """How the extension was built.

    Returns:
        ``compiler``, ``torch`` (version it was built against), ``isas`` (instruction sets it holds), ``isa`` (the one
        in use here), ``bf16`` (what multiplies bfloat16 here: ``"none"``, ``"avx512_bf16"`` or ``"amx"``) and ``cuda``
        (architectures, or ``"none"``); empty if the extension is absent.
    """
    return dict(_module.build_info()) if _module is not None else {}


def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("CLEAD_NATIVE") == "0":
        return None, "switched off by CLEAD_NATIVE=0"
    try:
        return importlib.import_module("._C", __package__), None
    except ModuleNotFoundError:
        built = sorted(path.name for path in Path(__file__).parent.glob("_C.*"))
        found = f"the extension is built for another Python ({built[0]})" if built else "the extension is not built"
        return None, f"{found}: {BUILD_COMMAND}"
    except ImportError as error:
        # An undefined symbol, nearly always: the file was linked against another torch.
        return None, f"the extension does not load with torch {torch.__version__} ({error}): {BUILD_COMMAND}"


_module, _reason = _load()
