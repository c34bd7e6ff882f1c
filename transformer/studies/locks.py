"""One process at a time for a cell: a locked file that says who holds it.

The system takes the lock back when the last process that holds it is gone, however it went: a runner that was
killed leaves no lock behind, and a training that outlived its runner still holds its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from ..core.disk import content, not_through_a_link
from ..core.errors import DataError


class Lock:
    """A held lock. `descriptor` may be passed to a child, which then holds it too."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def write(self, **words: Any) -> None:
        """Say who holds it: this process, its host, and what else is given."""
        holder = {"pid": os.getpid(), "host": socket.gethostname(), **words}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: who would remove it could remove another's lock."""
        os.close(self.descriptor)


def take(path: Path) -> Lock | None:
    """The lock, or None while another process has it. DataError where files cannot be locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = not_through_a_link(str(path), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise DataError(
            f"{path}: cannot be locked ({error.strerror}), so two runners could train one cell;"
            " put --runs on a file system with locks"
        ) from error
    lock = Lock(path, descriptor)
    lock.write()
    return lock


def held(path: Path) -> bool:
    """Has a process the lock?"""
    lock = take(path)
    if lock is not None:
        lock.release()
    return lock is None


def holder(path: Path) -> str:
    """`process 123 on host`, for messages."""
    try:
        words = json.loads(content(path))
        child = f", training in process {words['training']}" if "training" in words else ""
        return f"process {words['pid']} on {words['host']}{child}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
