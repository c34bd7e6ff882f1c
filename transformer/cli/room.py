"""Room for a new run: what is in its directory already, and what becomes of that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.disk import clear, sync_directory
from ..core.errors import ConfigError
from ..core.holding import lost
from ..core.rundir import (
    CHECKPOINTS,
    CONFIG_FILE,
    DATA_REPORT,
    JOB,
    LOCK,
    LOG,
    METRICS,
    RESULT,
    TENSORBOARD,
    TESTS,
    TOKENIZERS,
    WEIGHTS,
)
from ..export.manifest import MANIFEST, read_manifest
from .hold import held
from .lines import say

PARTIAL = ".partial"
FIRST_WORDS = "run directory"  # of the log of every start
# What preparing data leaves behind when it fails or is interrupted: a new run does not use it.
PREPARED = {TOKENIZERS, DATA_REPORT, LOG, JOB}
# A run that --overwrite replaces is moved entry by entry to the first, which then is the second until the new
# run begins to train, and the third while it is deleted: each change of name is one step, so that a start
# that is killed loses nothing.
MOVING, REPLACED, DISCARDED = ".moving", ".replaced", ".discarded"
WRITTEN = PREPARED | {CONFIG_FILE, RESULT, WEIGHTS, TESTS, CHECKPOINTS, METRICS, TENSORBOARD}


@contextmanager
def room(run_dir: Path, overwrite: bool) -> Iterator[None]:
    """A context in which a new run may be laid out in `run_dir`; `settle` says that it has begun.

    ConfigError when the directory holds a run and not `overwrite`, or anything that no run writes. A run that
    is to be overwritten is put aside, and put back when an exception comes before `settle`. The lock of the
    process that asks stays where it is.
    """
    try:
        if run_dir.is_dir():
            _restore(run_dir)  # what a start that was killed had put aside
            _make_room(run_dir, overwrite)
        yield
    except BaseException:
        if not lost(run_dir):
            _restore(run_dir)
        raise


def put_back(run_dir: Path, patience: float = 0.0) -> None:
    """Put back the run that a start with --overwrite had put aside when it was killed. Not in a room.

    CheckpointError while such a start is at work there; `patience` as of `held`.
    """
    if put_aside(run_dir):
        with held(run_dir, patience):
            _restore(run_dir)
        say(f"note: put back the run of {run_dir}, which an --overwrite had put aside when it was killed")


def put_aside(run_dir: Path) -> bool:
    """Is there a run that is to be replaced by one that has not begun to train?"""
    return (run_dir / REPLACED).exists() or (run_dir / MOVING).exists()  # in the order of putting it back


def settle(run_dir: Path) -> None:
    """Delete the run that was put aside."""
    if (run_dir / REPLACED).exists():
        (run_dir / REPLACED).rename(run_dir / DISCARDED)
        sync_directory(run_dir)
    shutil.rmtree(run_dir / DISCARDED, ignore_errors=True)


def _make_room(run_dir: Path, overwrite: bool) -> None:
    shutil.rmtree(run_dir / DISCARDED, ignore_errors=True)
    there = {path.name for path in run_dir.iterdir()} - {LOCK}
    foreign = sorted(name for name in there if not _ours(name))
    if CONFIG_FILE in there and not overwrite:
        raise ConfigError(
            f"{run_dir} already holds a run; go on with it by --resume {run_dir}, choose another --run-dir,"
            " or give --overwrite to delete it and start again"
        )
    if CONFIG_FILE not in there:
        ours = {name for name in there if name in PREPARED or _half(name)} if _began(run_dir) else set()
        foreign = sorted(there - ours)
    if foreign:
        raise ConfigError(
            f"{run_dir} holds other things ({', '.join(foreign[:4])}); choose another --run-dir"
        )
    if CONFIG_FILE in there:
        (run_dir / MOVING).mkdir()
        for name in there:
            (run_dir / name).rename(run_dir / MOVING / name)
        sync_directory(run_dir / MOVING)
        (run_dir / MOVING).rename(run_dir / REPLACED)
        sync_directory(run_dir)
    else:
        _delete(run_dir)


def _restore(run_dir: Path) -> None:
    """Put back what was put aside, in place of what a start that failed has written."""
    moving = run_dir / MOVING
    if (run_dir / REPLACED).is_dir():
        _delete(run_dir)
        sync_directory(run_dir)  # what is back must not meet what was deleted
        (run_dir / REPLACED).rename(moving)
    if moving.is_dir():
        for path in list(moving.iterdir()):
            path.rename(run_dir / path.name)
        sync_directory(run_dir)
        moving.rmdir()


def _delete(run_dir: Path) -> None:
    for path in list(run_dir.iterdir()):
        if _ours(path.name):
            clear(path)


def _ours(name: str) -> bool:
    """Whether a run writes this."""
    return name in WRITTEN or _half(name)


def belongs(run_dir: Path, path: Path) -> bool:
    """Is this a file that a run, or an export, keeps in its directory?"""
    own, other = os.path.realpath(run_dir), os.path.realpath(path)  # these take circles of links
    name = Path(os.path.relpath(other, own)).parts[:1]
    if not name or name[0] == "..":
        return False
    exported = run_dir / MANIFEST
    return _ours(name[0]) or (exported.is_file() and name[0] in {MANIFEST, *read_manifest(run_dir).files})


def _half(name: str) -> bool:
    """Is it what a write of ours that was killed leaves?"""
    return name.endswith(PARTIAL) and name.startswith(tuple(WRITTEN))


def _began(run_dir: Path) -> bool:
    """Whether the log begins as every start's does: then what PREPARED names here is ours."""
    log = run_dir / LOG
    if not log.is_file():
        return False
    with open(log, encoding="utf-8", errors="replace") as lines:
        return f"  {FIRST_WORDS} " in lines.readline()
