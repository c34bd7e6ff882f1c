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
    return _told().get("model name", platform.machine())


def processor_model() -> str:
    """The name with family and model, where these are told: a name alone may be that of many."""
    told = _told()
    numbers = {"family": told.get("cpu family"), "model": told.get("model")}
    return ", ".join([processor(), *(f"{key} {number}" for key, number in numbers.items() if number)])


def _told() -> dict[str, str]:
    """What the system says of its first processor."""
    file = Path("/proc/cpuinfo")
    first = file.read_text().partition("\n\n")[0] if file.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
