"""The run directories that this process holds; what writes there asks whether it still does.

`cli/hold.py` locks a file for that. Who removes it, or the directory, takes the lock away without a word:
then another process may lock a new file of that name, and train there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError
from .rundir import LOCK

_held: dict[Path, int] = {}  # a run directory, and the descriptor of its locked file


@contextmanager
def holding(run_dir: Path, descriptor: int) -> Iterator[None]:
    """A context in which `require_held` compares the lock of `run_dir` with this open file."""
    _held[run_dir.absolute()] = descriptor
    try:
        yield
    finally:
        del _held[run_dir.absolute()]


def is_held(lock: Path, descriptor: int) -> bool:
    """Is the open file still the one of that name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def require_held(path: Path) -> None:
    """CheckpointError where `path` lies in a run directory that was this process's and may be another's."""
    for run_dir, descriptor in _held.items():
        if run_dir in path.absolute().parents and not is_held(run_dir / LOCK, descriptor):
            raise CheckpointError(
                f"{run_dir / LOCK} has been removed or replaced, so that another process may train there:"
                f" {path} is not written"
            )
