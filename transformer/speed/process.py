"""What a process has used so far."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import torch


def peak_memory(device: torch.device, forked: int = 0) -> int:
    """Bytes: the most that a CUDA device's tensors held, or that this process had in memory.

    `forked` processes that have ended add at most what is said: what they share counts for each.

    Linux's `ru_maxrss` begins with what the process had that started this one; its status file does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 + forked * _largest(resource.RUSAGE_CHILDREN)
    return _largest(resource.RUSAGE_SELF)


def _largest(who: int) -> int:
    """`ru_maxrss` in bytes."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def age() -> float | None:
    """Seconds since this process began, imports included; None where the system does not tell."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
