"""Peak extra memory of one sample: what an implementation allocates beyond its inputs, its results included."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .contenders import contenders
from .work import Work, prepare

MIB = 2.0**20
M_MMAP_THRESHOLD = -3
STATUS = Path("/proc/self/status")


def available(device: str) -> float:
    """Bytes that may be allocated now."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024.0 * int(found[1]) if found else float("inf")


def peak_extra(case: Case, impl: str, device: str, threads: int, timeout: float = 120.0) -> float | None:
    """MiB that one sample adds at its peak; None where it could not be measured.

    On a CPU a child process with nothing else in it runs the sample and reads its own resident high-water mark. On a
    CUDA device the caching allocator counts exactly, so it happens here.
    """
    if device == "cuda":
        return _on_cuda(case, impl)
    return in_child(_child, (case, impl, threads), timeout)


def in_child(target: Callable[..., None], arguments: tuple[Any, ...], timeout: float) -> float | None:
    """What ``target(sender, *arguments)`` sends from a process of its own; None if nothing came."""
    # A server imports torch once and forks per measurement: a fresh import would take seconds each time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.memory"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=target, args=(sender, *arguments), daemon=True)
    child.start()
    sender.close()
    try:
        return float(receiver.recv()) if receiver.poll(timeout) else None
    except EOFError:  # the child died, e.g. of too little memory
        return None
    finally:
        child.kill()
        child.join()
        receiver.close()


def _child(sender: Connection, case: Case, impl: str, threads: int) -> None:
    torch.set_num_threads(threads)
    return_freed_blocks()
    contender = _contender(case, impl)
    # A compiler runs in this process and must be done before; other code is loaded by a tiny sample, whose own
    # memory, unlike that of a full one, the allocator does not keep for the next.
    first = case if contender.compiled else case.shrunk()
    _work(first, impl, "cpu").once()
    work = _work(case, impl, "cpu")
    work.reset()
    sender.send(added_by(work.once))


def added_by(sample: Callable[[], object]) -> float:
    """MiB that ``sample`` adds to the memory of this process at its peak."""
    _release()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _kilobytes("VmHWM")
    sample()
    return (_kilobytes("VmHWM") - before) * 1024 / MIB


def _on_cuda(case: Case, impl: str) -> float:
    work = _work(case, impl, "cuda")
    work.once()
    work.reset()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work.once()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _contender(case: Case, impl: str) -> Any:
    return next(contender for contender in contenders(case) if contender.impl == impl)


def _work(case: Case, impl: str, device: str) -> Work:
    contender = _contender(case, impl)
    return prepare(contender, case, case.inputs(device, seed=0, dtype=contender.dtype))


def return_freed_blocks() -> None:
    """Fix glibc's threshold for blocks of their own at 128 KiB: it grows otherwise, and then freed blocks stay
    resident or not by chance (30 MB or 14 for the same sample)."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, 128 * 1024)


def _release() -> None:
    """Give freed memory back to the system, so that its reuse is counted."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found, f"{STATUS} has no {field}"
    return int(found[1])
