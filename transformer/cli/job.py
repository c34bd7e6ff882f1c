"""Which job a run directory is of: its attempts go on with the run, for any other it is in the way.

A job is the torchruns that start its processes, one on each machine, each for all of its attempts; the file
has a line of each that ever had a part (`job_of`). One that is replaced is known by those that stay, and the
file is written before anything else is done: it has the new one when the last of the old ones goes.
"""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError
from ..core.rundir import CONFIG_FILE, JOB
from ..training.launch import OWN, restarted
from .result import write_text
from .room import put_aside


def taken_up(run_dir: Path, job: str) -> bool:
    """Has an earlier attempt of this job begun to train here, or gone on? If so, the run is signed again."""
    begun = (run_dir / CONFIG_FILE).is_file() and not put_aside(run_dir)
    if begun and is_of(run_dir, job):
        sign(run_dir, job)
        return True
    return False


def require_known(job: str, run_dir: Path, overwrite: bool) -> None:
    """ConfigError where a run would be overwritten that an earlier attempt of this job may have begun."""
    if restarted() and not job and overwrite and (run_dir / CONFIG_FILE).is_file():
        raise ConfigError(
            f"torchrun has started this process anew, and nothing tells whether the run in {run_dir} is its"
            f" own: hand {OWN} on to the process, or give --resume {run_dir} in place of --overwrite"
        )


def is_of(run_dir: Path, job: str) -> bool:
    """Has this job signed here, as it is now or with other machines?"""
    return bool(job) and not set(_signed(run_dir)).isdisjoint(job.encode().splitlines())


def sign(run_dir: Path, job: str) -> None:
    """This job's is the run from now on; it is nobody's where no torchrun started the process."""
    lines = job.encode().splitlines()
    before = _signed(run_dir) if is_of(run_dir, job) else []
    if not lines:
        (run_dir / JOB).unlink(missing_ok=True)
    elif not set(lines) <= set(before):
        write_text(run_dir / JOB, b"\n".join(sorted({*before, *lines})).decode(errors="replace"))


def _signed(run_dir: Path) -> list[bytes]:
    return (run_dir / JOB).read_bytes().splitlines() if (run_dir / JOB).is_file() else []
