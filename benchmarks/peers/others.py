"""How much of the processors' time others had while a process ran: other processes and virtual machines."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

STAT = Path("/proc/stat")
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; neither idle nor waiting for a disk


class Spent(NamedTuple):
    """Seconds of processor time up to now, `wanted` by all here and `own`, of this process's children.

    What was wanted and the host gave to another virtual machine is in `wanted`. Children count when they have
    ended.
    """

    wanted: float
    own: float

    @classmethod
    def now(cls) -> Spent | None:
        """None where Linux does not tell."""
        if not STAT.exists():
            return None
        fields = STAT.read_text().partition("\n")[0].split()[1:]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        wanted = sum(int(fields[i]) for i in BUSY) / os.sysconf("SC_CLK_TCK")
        return cls(wanted, children.ru_utime + children.ru_stime)

    def others(self, now: Spent) -> float:
        """The share, from 0 to 1, of what was wanted since then that the children did not have."""
        wanted = now.wanted - self.wanted
        return min(max(1 - (now.own - self.own) / wanted, 0.0), 1.0) if wanted > 0 else 0.0
