"""The run directories that this process holds; what writes there asks whether it still does.

`cli/hold.py` locks a file for that. Who removes it, or the directory, takes the lock away without a word:
then another process may lock a new file of that name, and train there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CheckpointError
from .rundir import LOCK

_held: dict[Path, int] = {}  # a run directory, and the descriptor of its locked file


@contextmanager
def holding(run_dir: Path, descriptor: int) -> Iterator[None]:
    """A context in which `require_held` compares the lock of `run_dir` with this open file."""
    own = run_dir.absolute()  # now: the process may change its directory
    _held[own] = descriptor
    try:
        yield
    finally:
        del _held[own]


def is_held(lock: Path, descriptor: int) -> bool:
    """Is the open file still the one of that name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except OSError:
        return False


def lost(run_dir: Path) -> bool:
    """Has this process held it, and does not any more?"""
    own = run_dir.absolute()
    return own in _held and not is_held(own / LOCK, _held[own])


def require_held(path: Path) -> None:
    """CheckpointError where `path` lies in a run directory that was this process's and may be another's."""
    for run_dir, descriptor in _held.items():
        if run_dir not in path.absolute().parents:
            continue
        if is_held(run_dir / LOCK, descriptor):
            with suppress(OSError):
                os.utime(descriptor)  # what is old is removed from some places
        else:
            raise CheckpointError(
                f"{run_dir / LOCK} has been removed or replaced, so that another process may train there:"
                f" {path} is not written"
            )
