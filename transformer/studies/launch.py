"""Cells as an array of jobs of a cluster's own scheduler, by submitit: one job for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..core.errors import ConfigError
from .cells import Cell
from .runner import Slots, Summary, run

Launcher = Literal["slurm", "local"]


class CellJob:
    """What a job runs: its cell, to the end. A job that is preempted is queued again, and goes on."""

    def __init__(self, cell: Cell, device: str = "auto") -> None:
        self.cell, self.device = cell, device

    def __call__(self) -> str:
        summary: Summary = run([self.cell], Slots.of(1, self.device), print)
        return summary.ends.get(self.cell.name, "interrupted")

    def checkpoint(self) -> Any:
        """Asked by submitit shortly before the time is over: what the trainer saved last is gone on with."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch(
    cells: Sequence[Cell],
    launcher: Launcher,
    folder: Path,
    parameters: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Hand the cells to the scheduler: name -> job; `job.result()` waits and gives the cell's end.

    `parameters` are submitit's own: timeout_min, slurm_partition, gpus_per_node, slurm_array_parallelism.
    `local` runs them as processes here, all at once: for trying things out. Raises ConfigError where there is
    no such scheduler, or it does not take the jobs.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError(
            "--launch needs submitit, which is not installed: pip install prepost-transformer[slurm]"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher)
        executor.update_parameters(**(parameters or {}))
        with executor.batch():
            return {cell.name: executor.submit(CellJob(cell, device)) for cell in cells}
    except RuntimeError as error:
        raise ConfigError(f"--launch {launcher}: {error}") from None
    except (NameError, ValueError, TypeError) as error:
        raise ConfigError(f"--launch-set: {error}") from None
