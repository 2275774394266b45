"""Freed memory stays with the process, where the C library can be told so."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from clead.engine import memory

FAULTS = """
import resource, torch
from clead.engine.memory import keep_freed_memory
keep_freed_memory()
for step in range(20):
    if step == 16:  # until about the eighth, the heap has holes that are a little too small
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)  # 64 MiB, more than glibc keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", FAULTS]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_large_tensors_are_made_in_pages_that_are_there_already():
    assert faults() < 20
    # With huge pages of 2 MiB; with small ones it is 65,536.
    assert faults(MALLOC_MMAP_MAX_="65536") >= 4 * 64 / 2


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_it_does_nothing_where_malloc_is_another_one(system, monkeypatch):
    class Library:
        def __init__(self, name):
            assert system == "linux"  # elsewhere there may be none to open

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(sys, "platform", system)
    memory.keep_freed_memory()
