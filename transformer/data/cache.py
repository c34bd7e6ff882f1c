"""A directory of finished work, addressed by what it was made from.

An entry is a directory that appears whole, by one rename, or not at all. Two processes that want the same
entry wait for each other where the file system can lock; where it cannot, both make it and one of the two
equal results stays. Work that can go on where it stopped is kept when it stops, under the lock and by host: a
lock may hold among the processes of one machine only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.disk import sync_directory, sync_file
from ..core.errors import DataError
from .checksums import REMADE

PARTS = ENCODED, TEXTS, TOKENIZERS = "encoded", "texts", "tokenizers"  # the directories of a cache


class Changed(DataError):
    """What an entry is made from is no longer what its key says: nothing of it is kept."""


def key_of(**parts: object) -> str:
    """A name for what is made from `parts` (plain values only)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fetch(
    folder: Path,
    key: str,
    make: Callable[[Path], None],
    sound: Callable[[Path], bool],
    log: Callable[[str], None] = lambda _: None,
    *,
    resumable: bool = False,
) -> tuple[Path, bool]:
    """The entry `folder/key` and whether it was made now. `make` fills an empty directory.

    With `resumable`, `make` may get the directory that an earlier call has begun to fill. An entry that is
    not `sound` (a disk was full, a copy cut short) is made again. Raises DataError when the directory cannot
    be written.
    """
    entry = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if entry.is_dir() and sound(entry):
            return entry, False
        with _lock(folder / f".{key}.lock", log) as locked:
            if entry.is_dir():
                if sound(entry):
                    return entry, False
                log(f"{entry} {REMADE}")
                _remove(entry)
            with _begun(folder, key) if resumable and locked else _scratch(folder, key) as fresh:
                make(fresh)
                os.chmod(fresh, 0o755)
                _publish(fresh, entry)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        kept = "; what is done is kept: with room, the next start goes on from there" if resumable else ""
        raise DataError(
            f"cannot write the data cache {folder}: {error.strerror or error}{where}; "
            f"set data.cache to a directory with room that you may write{kept}"
        ) from error
    return entry, True


@contextmanager
def _scratch(folder: Path, key: str) -> Iterator[Path]:
    """A directory that is gone afterwards, unless it was given another name."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _begun(folder: Path, key: str) -> Iterator[Path]:
    """A directory that stays, with what was done, when this does not come to its end.

    Unless what it is made from has `Changed`.
    """
    fresh = folder / f".{key}.begun.{platform.node()}"
    fresh.mkdir(exist_ok=True)
    try:
        yield fresh
    except Changed:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(fresh, ignore_errors=True)


def _publish(fresh: Path, entry: Path) -> None:
    for path in fresh.iterdir():
        sync_file(path)
    sync_directory(fresh)
    try:
        os.rename(fresh, entry)
        sync_directory(entry.parent)
    except OSError:
        if not entry.is_dir():
            raise  # not the race: another process did not make the same entry first


def _remove(entry: Path) -> None:
    """Move aside first: another process may have the files open, and must not see half of them."""
    aside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.old.", dir=entry.parent))
    os.rename(entry, aside / entry.name)
    shutil.rmtree(aside)


@contextmanager
def _lock(path: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """A context that one process at a time is in; False where the file system cannot lock."""
    with open(path, "wb") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log(f"waiting for another process that prepares the same ({path})")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            locked = False  # some network file systems: the rename alone keeps the entry whole
        else:
            locked = True
        try:
            yield locked
        finally:
            if locked:
                fcntl.flock(file, fcntl.LOCK_UN)
