"""Which job a run directory is of: its attempts go on with the run, for any other it is in the way.

A job is the torchruns that start its processes, one on each machine, each for all of its attempts; the file
has a line of each (`agent_of`). One that is replaced is known by those that stay, and the file is written
before anything else is done, so that it has the new one when the last of the old ones goes.
"""

from __future__ import annotations

from pathlib import Path

from ..core.rundir import CONFIG_FILE, JOB
from .result import write_text
from .room import put_aside


def taken_up(run_dir: Path, job: str) -> bool:
    """Has an earlier attempt of this job begun to train here, or gone on? If so, the run is signed again."""
    begun = (run_dir / CONFIG_FILE).is_file() and (run_dir / JOB).is_file() and not put_aside(run_dir)
    if not job or not begun:
        return False
    before, now = (run_dir / JOB).read_bytes().splitlines(), job.encode().splitlines()
    if set(before).isdisjoint(now):
        return False
    if before != now:
        sign(run_dir, job)
    return True


def sign(run_dir: Path, job: str) -> None:
    """This job's is the run from now on; none has a job that no torchrun started."""
    if job:
        write_text(run_dir / JOB, job)
    else:
        (run_dir / JOB).unlink(missing_ok=True)
