"""Files that are there whole or not at all, also after a crash of the machine."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

LARGEST = 1 << 28  # bytes of a file of a run that is read whole


def replace(temporary: Path, path: Path) -> None:
    """Give a file that was written beside `path` that name, for good. OSError as the system raises it."""
    sync_file(temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Have the content of a file on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make renames in it last. Windows cannot open directories, and needs none of this."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def not_through_a_link(path: str, flags: int) -> int:
    """`open`'s opener of a file that is changed in place: what a link leads to is none of this directory.

    OSError, which says so, and also that it is no file: who opens a pipe would wait for its reader.
    """
    special = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | special, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and what it leads to is not touched", path) from error
        raise
    return _require_regular(descriptor, path, "it is no file")


def regular(path: str, flags: int) -> int:
    """`open`'s opener of a file that lies in a directory which may come from anywhere. Links are followed.

    OSError, which says so, where it is no regular file: a pipe would be waited for, a device may have no end.
    What a user names as input is not opened by this: that may well be a pipe.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    return _require_regular(descriptor, path, "it is no regular file")


def _require_regular(descriptor: int, path: str, message: str) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, message, path)
    return descriptor


def content(path: Path, most: int | None = LARGEST) -> bytes:
    """The bytes of a regular file; OSError, which says so, for all else, and for one of more than `most`."""
    with open(path, "rb", opener=regular) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
        return file.read()


def clear(path: Path) -> None:
    """Remove what has this name, a directory with all in it, if anything has."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
