"""Room for a new run: what is in its directory already, and what becomes of that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import ConfigError
from ..core.rundir import (
    CHECKPOINTS,
    CONFIG_FILE,
    DATA_REPORT,
    LOCK,
    LOG,
    METRICS,
    RESULT,
    TENSORBOARD,
    TESTS,
    TOKENIZERS,
    WEIGHTS,
)

PARTIAL = ".partial"
FIRST_WORDS = "run directory"  # of the log of every start
# What preparing data leaves behind when it fails or is interrupted: a new run does not use it.
PREPARED = {TOKENIZERS, DATA_REPORT, LOG}
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
        _restore(run_dir)
        raise


def settle(run_dir: Path) -> None:
    """Delete the run that was put aside."""
    if (run_dir / REPLACED).exists():
        (run_dir / REPLACED).rename(run_dir / DISCARDED)
    shutil.rmtree(run_dir / DISCARDED, ignore_errors=True)


def _make_room(run_dir: Path, overwrite: bool) -> None:
    shutil.rmtree(run_dir / DISCARDED, ignore_errors=True)
    held = {path.name for path in run_dir.iterdir()} - {LOCK}
    foreign = sorted(name for name in held if not _ours(name))
    if CONFIG_FILE in held and not overwrite:
        raise ConfigError(
            f"{run_dir} already holds a run; go on with it by --resume {run_dir}, choose another --run-dir,"
            " or give --overwrite to delete it and start again"
        )
    if CONFIG_FILE not in held:
        ours = {name for name in held if name in PREPARED or _half(name)} if _began(run_dir) else set()
        foreign = sorted(held - ours)
    if foreign:
        raise ConfigError(
            f"{run_dir} holds other things ({', '.join(foreign[:4])}); choose another --run-dir"
        )
    if CONFIG_FILE in held:
        (run_dir / MOVING).mkdir()
        for name in held:
            (run_dir / name).rename(run_dir / MOVING / name)
        (run_dir / MOVING).rename(run_dir / REPLACED)
    else:
        _delete(run_dir)


def _restore(run_dir: Path) -> None:
    """Put back what was put aside, in place of what a start that failed has written."""
    moving = run_dir / MOVING
    if (run_dir / REPLACED).is_dir():
        _delete(run_dir)
        (run_dir / REPLACED).rename(moving)
    if moving.is_dir():
        for path in list(moving.iterdir()):
            path.rename(run_dir / path.name)
        moving.rmdir()


def _delete(run_dir: Path) -> None:
    for path in list(run_dir.iterdir()):
        if _ours(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _ours(name: str) -> bool:
    """Whether a run writes this."""
    return name in WRITTEN or _half(name)


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
