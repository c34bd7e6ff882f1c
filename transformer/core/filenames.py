"""Names that users give and that become names of files: what any system takes."""

from __future__ import annotations

import re
import unicodedata

LONGEST, LONGEST_BYTES = 100, 200  # file systems stop at 255 bytes, and endings follow
_SPECIAL = re.compile(r'[/\\:*?"<>|]')  # separators here or there, and what Windows refuses besides
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)  # on Windows


def unfit(name: str) -> str:
    """Why a file cannot have this name, with an ending, on every system; empty where it can."""
    if not name.strip():
        return "it is blank"
    if name in (".", ".."):
        return "it means a directory"
    if len(name) > LONGEST or len(name.encode(errors="surrogatepass")) > LONGEST_BYTES:
        return f"it is too long: {len(name):,} characters"
    if not name.isprintable():
        return f"it has the character {next(c for c in name if not c.isprintable())!r} in it"
    if special := _SPECIAL.search(name):
        return f"it has {special[0]!r} in it"
    return "it is a device of Windows" if _DEVICE.fullmatch(name) else ""


def same_file(name: str) -> str:
    """What two names have in common that are one file where neither case nor composition counts."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def fitting(name: str) -> str:
    """The name with `_` for what a file name cannot have in it."""
    return "".join(c if c.isprintable() and not _SPECIAL.match(c) else "_" for c in name)
