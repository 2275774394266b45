"""What the machine itself can do, measured in the run whose rows it is held against."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

EXPONENTIALS = 64
"""Of each value in registers, so that a device's memory does not count."""


@dataclass(frozen=True)
class Rates:
    """Bytes, floating-point operations and exponentials a second; None where it cannot be measured.

    Attributes:
        copy: bytes read and written by a copy that no cache holds.
        products: by dtype, of one large square product.
        exp: exponentials of float32.
    """

    copy: float
    products: dict[str, float]
    exp: float | None

    def product(self, dtype: str, tf32: bool = False) -> float | None:
        """The rate for rows of ``dtype``."""
        return self.products.get("tf32" if tf32 else dtype)

    def __str__(self) -> str:
        found = [f"copy {self.copy / 1e9:.1f} GB/s"]
        found += [f"products {name} {rate / 1e9:.0f} GFLOP/s" for name, rate in self.products.items()]
        return "  ".join([*found, *([f"exp {self.exp / 1e9:.2f} G/s"] if self.exp else [])])


@functools.cache
def measure(device: str, threads: int) -> Rates:
    """The rates of ``device``; once a process, with ``threads`` threads, which torch already has."""
    cuda = device == "cuda"
    copy = _copy(2**28 if cuda else 2**25, device)
    products = {name: product(dtype, device) for name, dtype in _KINDS.items() if cuda or name != "fp16"}
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            products["tf32"] = product(torch.float32, device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
    return Rates(copy, products, _exponentials(device))


def product(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations a second of a large square product.

    On a CPU that others share the best of half a second: a moment may be a slow one.
    """
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)  # zeros would run faster
    out = torch.empty_like(a)
    seconds = best(lambda: torch.mm(a, a, out=out), device == "cuda", seconds=0.0 if device == "cuda" else 0.5)
    return 2 * size**3 / seconds


def best(call: Callable[[], object], cuda: bool, times: int = 5, seconds: float = 0.0) -> float:
    """Seconds of the fastest call but the first, of at least ``times`` in at least ``seconds``."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) <= times or time.perf_counter() < end:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


_KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _copy(size: int, device: str) -> float:
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source), device == "cuda")


def _exponentials(device: str) -> float | None:
    if device == "cpu":
        x = torch.rand(2**17)
        out = torch.empty_like(x)
        return x.numel() / best(lambda: torch.exp(x, out=out), False, times=50)
    code = f"""template <typename T> T many(T x) {{
        for (int i = 0; i < {EXPONENTIALS}; ++i) x = exp2f(-x);
        return x;
    }}"""
    x = torch.rand(2**26, device=device)
    try:
        many = torch.cuda.jiterator._create_jit_fn(code)
        return EXPONENTIALS * x.numel() / best(lambda: many(x), True)
    except (RuntimeError, AttributeError):  # a torch built without a run-time compiler
        return None
