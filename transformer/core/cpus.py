"""How many CPUs this process may use, and how many threads and processes may be asked for."""

from __future__ import annotations

import os

# OpenMP is not asked for more: with 100,000 threads it crashes the process. No machine is served by more.
MOST_THREADS = 1024
MOST_PROCESSES = 256


def usable_cpus() -> int:
    """CPUs that the scheduler may put this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
