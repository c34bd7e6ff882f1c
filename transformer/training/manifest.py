"""The manifest of a directory: size and SHA-256 of each file, to tell whether it is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.disk import content, regular
from ..core.errors import CheckpointError
from .checkpoint import write_atomically

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20


def file_digest(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of its first `size` bytes. OSError as reading raises it."""
    found, left = hashlib.sha256(), size
    with open(path, "rb", opener=regular) as file:
        while block := file.read(_CHUNK if left is None else min(_CHUNK, left)):
            found.update(block)
            left = None if left is None else left - len(block)
    return found.hexdigest()


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of all that `directory` holds, with `facts`; it comes last and makes it whole."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }
    text = json.dumps({"format": FORMAT, **facts, "files": files}, indent=1) + "\n"
    write_atomically(directory / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def verified(directory: Path) -> dict[str, Any] | None:
    """What the manifest says, every file held against it; None where there is no manifest.

    Raises CheckpointError for the first file that is missing, has another size or another checksum, and for a
    manifest that is damaged or names anything but files of this directory.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(content(path))
        files = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in manifest["files"].items()}
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, this version reads {FORMAT}")
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error
    for name, (size, digest) in files.items():
        if "\0" in name or "\\" in name or Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{path}: names {name!r}, which is no file of its own directory")
        _verify(directory / name, size, digest)
    return dict(manifest)


def _verify(path: Path, size: int, digest: str) -> None:
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: no such file")
        if not path.is_file():
            raise CheckpointError(f"{path}: it is no regular file")
        if (found := path.stat().st_size) != size:
            raise CheckpointError(f"{path}: cut short or damaged ({found:,} bytes instead of {size:,})")
        if file_digest(path) != digest:
            raise CheckpointError(f"{path}: damaged (its SHA-256 is not the one in {MANIFEST})")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
