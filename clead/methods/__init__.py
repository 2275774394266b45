"""Training methods, one file each."""

import difflib
from typing import Any

from clead.errors import UserError
from clead.methods.a_acl import AACL
from clead.methods.a_rocl import ARoCL
from clead.methods.acl import ACL
from clead.methods.adaptive_fnc import AdaptiveFNC
from clead.methods.advcl import AdvCL
from clead.methods.ascl import ASCL
from clead.methods.base import Batch, Method
from clead.methods.ce import CrossEntropy
from clead.methods.clae import CLAE
from clead.methods.clead import CLead
from clead.methods.dynacl import DynACL
from clead.methods.fast_at import FastAdversarialTraining
from clead.methods.fnc import FNC
from clead.methods.ifnd import IFND
from clead.methods.mart import MART
from clead.methods.pgd_at import PGDAdversarialTraining
from clead.methods.plain import Plain
from clead.methods.rocl import RoCL
from clead.methods.simclr import SimCLR
from clead.methods.sup_con import SupCon
from clead.methods.trades import TRADES
from clead.methods.uel import UEL

METHODS: dict[str, type[Method[Any]]] = {
    "a_acl": AACL,
    "a_rocl": ARoCL,
    "acl": ACL,
    "adaptive_fnc": AdaptiveFNC,
    "advcl": AdvCL,
    "ascl": ASCL,
    "ce": CrossEntropy,
    "clae": CLAE,
    "clead": CLead,
    "dynacl": DynACL,
    "fast_at": FastAdversarialTraining,
    "fnc": FNC,
    "ifnd": IFND,
    "mart": MART,
    "pgd_at": PGDAdversarialTraining,
    "plain": Plain,
    "rocl": RoCL,
    "simclr": SimCLR,
    "sup_con": SupCon,
    "trades": TRADES,
    "uel": UEL,
}

__all__ = ["METHODS", "Batch", "Method", "find_method"]


def find_method(name: str) -> type[Method[Any]]:
    """The method called ``name``; a UserError names the nearest one."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
    raise UserError(
        f"unknown method {name!r}; the nearest is {near!r}, --list shows all, and --import MODULE brings your own"
    )
