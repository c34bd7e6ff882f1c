"""One training at a time in a run directory: a locked file that says who holds it.

What is written later asks whether the file is still the locked one (`core/holding.py`).
The system takes the lock back when its process is gone, however it went, and with it what it was just
starting: until that is a program of its own it has a copy of the lock. Readers do not ask for it.
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

from ..core.disk import not_through_a_link
from ..core.errors import CheckpointError, ConfigError
from ..core.holding import holding, is_held
from ..core.rundir import LOCK
from .lines import say

GRACE = 10.0  # seconds for what a process that is gone had just started


@contextmanager
def held(run_dir: Path, patience: float = 0.0) -> Iterator[None]:
    """A context in which no other process trains in `run_dir`, which is made if need be.

    `patience`: seconds to wait for who holds it, where that is about to end. Of several ranks the first one
    holds it for all.
    CheckpointError names the process and the host that hold it, or says why nothing can be written. Where the
    file system knows no locks there is none: that is said, and the training goes on.
    """
    path = run_dir / LOCK
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is a file; choose another --run-dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, time.monotonic() + patience)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or run_dir}: cannot be written ({error.strerror}); make it writable, or choose"
            " another --run-dir"
        ) from error
    try:
        with suppress(OSError):  # on a full disk it is locked and says nothing
            _sign(descriptor)
        with holding(run_dir, descriptor):
            yield
    finally:
        _release(path, descriptor)


def _locked(path: Path, deadline: float) -> int:
    """A descriptor of the file, locked. A file that its holder removed meanwhile is made anew."""
    grace = time.monotonic() + GRACE
    while True:
        descriptor = not_through_a_link(str(path), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now, holder = time.monotonic(), _holder(descriptor)
            os.close(descriptor)
            if now < (max(deadline, grace) if _gone(holder) else deadline):
                time.sleep(0.1)
                continue
            who = f"process {holder[0]} on {holder[1]}" if holder else "another process"
            raise CheckpointError(
                f"{path.parent} is in use: {who} trains there; wait for it, stop it, or choose another"
                " --run-dir"
            ) from None
        except OSError as error:
            say(f"note: {path} cannot be locked ({error.strerror}); see that no second process trains there")
            return descriptor
        if is_held(path, descriptor):
            return descriptor
        os.close(descriptor)


def _release(path: Path, descriptor: int) -> None:
    """Remove the file while it is still locked: then it cannot be another's, unless this one was removed."""
    with suppress(OSError):
        if is_held(path, descriptor):
            path.unlink()
    os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Write down who holds the lock."""
    words = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, words.encode(), 0)


def _holder(descriptor: int) -> tuple[int, str] | None:
    """The process that has the lock, and its host; None if it does not say so within a second."""
    for _ in range(20):
        with suppress(OSError, ValueError, OverflowError, KeyError, TypeError):
            words = json.loads(os.pread(descriptor, 4096, 0))
            return int(words["pid"]), str(words["host"])
        time.sleep(0.05)  # it has the lock, and has not written yet
    return None


def _gone(holder: tuple[int, str] | None) -> bool:
    """Was it a process of this machine that is no more?"""
    if holder is None or holder[1] != socket.gethostname():
        return False
    try:
        os.kill(holder[0], 0)
    except (OSError, OverflowError) as error:  # also another user's, or no number of a process
        return isinstance(error, ProcessLookupError)
    return False
