"""A directory of finished work, addressed by what it was made from.

An entry is a directory that appears whole, by one rename, or not at all. Two processes that want the same
entry wait for each other where the file system can lock; where it cannot, both make it and one of the two
equal results stays.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DataError


def key_of(**parts: object) -> str:
    """A name for what is made from `parts` (plain values only)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fetch(
    folder: Path, key: str, make: Callable[[Path], None], sound: Callable[[Path], bool]
) -> tuple[Path, bool]:
    """The entry `folder/key` and whether it was made now. `make` fills an empty directory.

    An entry that is not `sound` (a disk was full, a copy cut short) is made again. Raises DataError when
    the directory cannot be written.
    """
    entry = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if entry.is_dir() and sound(entry):
            return entry, False
        with _lock(folder / f".{key}.lock"):
            if entry.is_dir():
                if sound(entry):
                    return entry, False
                _remove(entry)
            fresh = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
            try:
                make(fresh)
                os.chmod(fresh, 0o755)
                _publish(fresh, entry)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"cannot write the data cache {folder}: {error.strerror or error}{where}; "
            "set data.cache to a directory with room that you may write"
        ) from error
    return entry, True


def _publish(fresh: Path, entry: Path) -> None:
    for path in fresh.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        os.rename(fresh, entry)
    except OSError:
        if not entry.is_dir():
            raise  # not the race: another process did not make the same entry first


def _remove(entry: Path) -> None:
    """Move aside first: another process may have the files open, and must not see half of them."""
    aside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.old.", dir=entry.parent))
    os.rename(entry, aside / entry.name)
    shutil.rmtree(aside)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            locked = False  # some network file systems: the rename alone keeps the entry whole
        else:
            locked = True
        try:
            yield
        finally:
            if locked:
                fcntl.flock(file, fcntl.LOCK_UN)
