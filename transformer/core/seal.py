"""A first line that tells whether the text below it is as it was written."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .disk import regular
from .loading import LARGEST

_HASH = re.compile("[0-9a-f]{24}")  # also of a seal that is damaged itself
MARK = "# sha256 of what follows: "


def sealed(text: str) -> str:
    """The text with its seal, a comment in YAML, before it."""
    return f"{MARK}{_digest(text)}\n{text}"


def broken(text: str) -> bool:
    """Has the text a seal that is not its own, or does it say nothing? One that was edited has none."""
    first, _, rest = text.partition("\n")
    if all(line.startswith("#") or not line.strip() for line in text.splitlines()):
        return True
    return _HASH.search(first) is not None and first != f"{MARK}{_digest(rest)}"


def is_broken(path: Path) -> bool:
    """`broken` of a configuration file, of which no more is read than such a file may have."""
    with open(path, encoding="utf-8", errors="surrogateescape", opener=regular) as file:
        return broken(file.read(LARGEST + 1))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
