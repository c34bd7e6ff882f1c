"""A first line that tells whether the text below it is as it was written."""

from __future__ import annotations

import hashlib

MARK = "# sha256 of what follows: "


def sealed(text: str) -> str:
    """The text with its seal, a comment in YAML, before it."""
    return f"{MARK}{_digest(text)}\n{text}"


def broken(text: str) -> bool:
    """Has the text a seal that is not its own? Without one, as an edited text may be, nothing is broken."""
    first, _, rest = text.partition("\n")
    return first.startswith(MARK) and first.removeprefix(MARK) != _digest(rest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
