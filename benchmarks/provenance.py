"""What a measurement was made of and on: the commit of a checkout, the processor."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def commit_of(checkout: Path) -> str:
    """Twelve letters of it, or `unknown`."""
    git = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def processor() -> str:
    """Its name as the system has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
