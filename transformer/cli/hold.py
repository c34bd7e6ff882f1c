"""One training at a time in a run directory: a locked file that says who holds it.

The system takes the lock back when its process is gone, however it went. Readers do not ask for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import CheckpointError, ConfigError
from ..core.rundir import LOCK
from .lines import say


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """A context in which no other process trains in `run_dir`, which is made if need be.

    CheckpointError names the process and the host that hold it, or says why nothing can be written. Where the
    file system knows no locks there is none: that is said, and the training goes on.
    """
    path = run_dir / LOCK
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is a file; choose another --run-dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    except OSError as error:
        raise CheckpointError(
            f"{run_dir}: cannot be written ({error.strerror}); make it writable, or choose another --run-dir"
        ) from error
    try:
        with suppress(OSError):  # on a full disk it is locked and says nothing
            _sign(descriptor)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is still locked: it cannot be another's
        os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor of the file, locked. A file that its holder removed meanwhile is made anew."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _holder(descriptor) or "another process"
            os.close(descriptor)
            raise CheckpointError(
                f"{path.parent} is in use: {who} trains there; wait for it, stop it, or choose another"
                " --run-dir"
            ) from None
        except OSError as error:
            say(f"note: {path} cannot be locked ({error.strerror}); see that no second process trains there")
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Write down who holds the lock."""
    words = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, words.encode(), 0)


def _holder(descriptor: int) -> str:
    """`process 123 on host`, for messages; empty if it does not say so within a second."""
    for _ in range(20):
        with suppress(OSError, ValueError, KeyError, TypeError):
            words = json.loads(os.pread(descriptor, 4096, 0))
            return f"process {int(words['pid'])} on {words['host']}"
        time.sleep(0.05)  # it has the lock, and has not written yet
    return ""
