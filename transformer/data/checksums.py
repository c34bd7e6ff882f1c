"""Checksums of what the cache holds: CRC-32, against damage, not against malice.

A JSON file has one of its values among them. A directory has `meta.json`, such a file, with the size and the
checksum of each of its files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.disk import content
from ..core.reading import read_json

META = "meta.json"
REMADE = "is damaged, or of another version of this program: it is made anew"
_BLOCK = 1 << 20  # bytes that are read at a time


def checksum(path: Path, stop: int | None = None) -> int:
    """CRC-32 of a file, or of its first `stop` bytes."""
    value, left = 0, path.stat().st_size if stop is None else stop
    with open(path, "rb") as file:
        while left and (block := file.read(min(left, _BLOCK))):
            value, left = zlib.crc32(block, value), left - len(block)
    return value


def checked(values: Mapping[str, Any]) -> str:
    """JSON of plain values, with a checksum of them."""
    found = zlib.crc32(json.dumps(values).encode())
    return json.dumps({**values, "checksum": found}, indent=1) + "\n"


def read_checked(path: Path) -> dict[str, Any]:
    """What `checked` wrote; ValueError if it is something else by now."""
    text = content(path).decode("utf-8")
    values = read_json(text)
    try:
        del values["checksum"]
        same = checked(values) == text
    except (TypeError, KeyError, RecursionError) as error:  # no mapping, or nested too deeply to be written
        raise ValueError(f"{path} is damaged") from error
    if not same:
        raise ValueError(f"{path} is damaged")
    return dict(values)


def seal(folder: Path) -> None:
    """Write the `meta.json` of the files that a directory has."""
    files = {path.name: (path.stat().st_size, checksum(path)) for path in sorted(folder.iterdir())}
    (folder / META).write_text(checked({"files": files}), encoding="utf-8")


def is_sound(folder: Path) -> bool:
    """Is every file there, as it was written? Reads all of it."""
    try:
        files = read_checked(folder / META)["files"]
        sizes = all((folder / name).stat().st_size == size for name, (size, _) in files.items())
        return sizes and all(checksum(folder / name) == value for name, (_, value) in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
