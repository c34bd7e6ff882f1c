"""Freed memory stays mapped once the allocator was told so."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from transformer.training import memory

PROGRAM = """\
import ctypes, resource, runpy, sys

if sys.argv[2] == "kept":
    assert runpy.run_path(sys.argv[1])["keep_freed_memory"]()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 64 << 20


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def touch():
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)


touch()
before = faults()
for _ in range(4):
    touch()
print(faults() - before)
"""


def faults(way: str) -> int:
    """Minor page faults of writing 64 MiB four times in memory that is freed each time, the first apart."""
    tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
    command = [sys.executable, "-S", "-c", PROGRAM, memory.__file__, way]  # an allocator nobody has told yet
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    """A mapping has at least 32 of the largest pages that a kernel makes unasked, of 2 MiB."""
    assert faults("kept") < 32
    assert faults("default") > 4 * 31


def test_without_glibc_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
