"""The weights a run keeps: the best, the last few validated ones, and model.safetensors, the run's model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..core.disk import content
from ..core.errors import CheckpointError
from ..core.rundir import CHECKPOINTS, LOG, WEIGHTS
from ..model.transformer import Transformer
from .checkpoint import average_checkpoints, beside, read_weights, set_weights, write_weights
from .config import TrainConfig
from .progress import Progress
from .states import FRESH, PREVIOUS, is_whole

SAVED = re.compile(rb"^[^ \n]+ [^ \n]+  state [0-9a-f]+ after update ", re.MULTILINE)  # a line of log.txt


def tells_of_states(run_dir: Path) -> bool:
    """Does log.txt say that a state was saved?"""
    return (run_dir / LOG).is_file() and SAVED.search(content(run_dir / LOG, most=None)) is not None


class Shelf:
    """Weights files of one run directory.

    `metadata` goes into the header of each. `metrics` is the validation of what stands in model.safetensors,
    and `averaged` how many checkpoints it is the mean of (0: it is one).
    """

    def __init__(self, run_dir: Path, config: TrainConfig, metadata: Mapping[str, str]) -> None:
        self.config, self.metadata = config, dict(metadata)
        self.model = run_dir / WEIGHTS
        self.checkpoints = run_dir / CHECKPOINTS
        self.last = self.checkpoints / "last"
        self.best = self.checkpoints / "best.safetensors"
        self.metrics: dict[str, float] = {}
        self.averaged = 0

    def at(self, update: int) -> Path:
        return self.checkpoints / f"update-{update:07d}.safetensors"

    def add(
        self, weights: Mapping[str, Tensor], progress: Progress, metrics: Mapping[str, float], final: bool
    ) -> None:
        """Keep validated weights, and make them the best and the run's model if they are.

        Those of a `final` validation, which was not due, never become best.safetensors: a run that goes on
        must not know of them.
        """
        kept, header = max(self.config.average, self.config.keep), self._header(progress.update, metrics)
        if kept:
            write_weights(self.at(progress.update), weights, header)
            progress.recent = [*(u for u in progress.recent if u != progress.update), progress.update][-kept:]
        if progress.best_update == progress.update:
            if not final:
                write_weights(self.best, weights, header)
            self.publish(weights, progress.update, metrics)

    def publish_if_first(self, weights: Mapping[str, Tensor], progress: Progress) -> None:
        """These weights become the run's model, unless a validation has chosen others already."""
        if not (progress.best_update and self.model.exists()):
            self.publish(weights, progress.update, {})

    def publish(
        self,
        weights: Mapping[str, Tensor],
        update: int,
        metrics: Mapping[str, float],
        averaged: Sequence[int] = (),
    ) -> None:
        """Make these the run's model."""
        header = self._header(update, metrics)
        if averaged:
            header["averaged"] = " ".join(map(str, averaged))
        write_weights(self.model, weights, header)
        self.metrics, self.averaged = dict(metrics), len(averaged)

    def reopen(self, progress: Progress) -> list[str]:
        """Make the best the run's model again: a run that had ended may have put an average there.

        What is damaged is mended from other files of the run. Where there is none, nothing is raised, since
        it may not be needed (a better validation comes, later weights are averaged): that is returned, for
        the log.
        """
        notes = self._mended(progress)
        if not progress.best_update:
            return notes
        try:
            tensors, header = self._find(progress.best_update)
        except CheckpointError as error:
            # A crash, or falling back to an earlier state, may have come after a better one was found, which
            # the run will find again.
            ahead = self._update_of(self.best) > progress.best_update
            return notes if ahead else [*notes, f"{error}; going on: they are needed if none better comes"]
        self._restore(tensors, header, progress)
        if not self._update_of(self.best):
            write_weights(self.best, *read_weights(self.model))
        return notes

    def _mended(self, progress: Progress) -> list[str]:
        """Write the kept weights that are damaged anew, where another file has the same; what has none."""
        notes = []
        for update in progress.recent:
            if self._update_of(self.at(update)) != update:
                try:
                    write_weights(self.at(update), *self._find(update))
                except CheckpointError as error:
                    notes.append(f"{error}; going on: they are needed if they are to be averaged")
        return notes

    def saved_nothing(self) -> bool:
        """Did the run end before its first save was whole? Then to begin again loses nothing.

        Validated weights may be there already, but none of an update after which a state must have been. Nor
        does log.txt tell of a state: then checkpoints/ has lost it, as a disk that is not mounted has.
        """
        if tells_of_states(self.checkpoints.parent):
            return False
        previous, new = self.last.with_name(PREVIOUS), beside(self.last, FRESH)
        if self.last.exists() or previous.exists() or is_whole(new):
            return False
        files = [*self.checkpoints.glob("update-*.safetensors"), self.best, self.model]
        first = min(every for every in (self.config.validate_every, self.config.save_every) if every)
        return max(map(self._update_of, files)) <= first

    def average(self, progress: Progress) -> tuple[dict[str, Tensor], list[int]]:
        """Mean of the last `config.average` validated weights, and their updates; empty for fewer than 2."""
        updates = progress.recent[-self.config.average :] if self.config.average else []
        if len(updates) < 2:
            return {}, []
        if faults := self._mended(progress):
            missing = [u for u in updates if self._update_of(self.at(u)) != u]
            if missing:
                what, count = faults[0].partition("; going on")[0], len(updates)
                raise CheckpointError(
                    f"{what}; the average of the last {count} validated weights needs them. Put back a copy"
                    f" of {self.at(missing[0])} and --resume, or --resume with a higher limit, until the last"
                    f" {count} are others; {self.model} has the best single weights"
                )
        return average_checkpoints([self.at(update) for update in updates]), updates

    def choose(
        self,
        model: Transformer,
        progress: Progress,
        measure: Callable[[], dict[str, float]],
        judge: Callable[[dict[str, float], int], tuple[float, float]],
    ) -> None:
        """Make the average of the last weights the run's model if it is better, and load what that is now.

        `measure()` validates `model`, `judge(metrics, averaged)` says how good that is.
        """
        averaged, updates = self.average(progress)
        if updates:
            set_weights(model, averaged, "the average")
            metrics = measure()
            score = judge(metrics, len(updates))
            assert progress.best is not None
            if score > progress.best:
                self.publish(averaged, progress.update, metrics, updates)
        set_weights(model, self.finished(progress), str(self.model))

    def finished(self, progress: Progress) -> Mapping[str, Tensor]:
        """The run's model at its end, from model.safetensors, which must be the best or the average."""
        try:
            tensors, header = read_weights(self.model)
            if self.averaged or header.get("update") == str(progress.best_update):
                return tensors
        except CheckpointError:
            if self.averaged:
                raise
        try:
            tensors, header = self._find(progress.best_update)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; they are the run's best, and its model. Put back a copy of {self.best} and"
                " --resume, or --resume with a higher limit: a better validation makes them needless"
            ) from error
        self._restore(tensors, header, progress)
        return tensors

    def _restore(self, tensors: Mapping[str, Tensor], header: Mapping[str, str], progress: Progress) -> None:
        """Make the best weights the run's model again; those of a state know nothing of their validation."""
        told = header if "metric" in header else self._header(progress.best_update, progress.best_metrics)
        write_weights(self.model, tensors, told)
        self.metrics = progress.best_metrics

    def _find(self, update: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights of an update and their header, from whichever file of the run has them whole."""
        faults = []
        states = (self.checkpoints / name / WEIGHTS for name in ("last", "previous"))
        for path in (self.best, self.at(update), self.model, *states):
            if path.is_file():
                try:
                    tensors, header = read_weights(path)
                except CheckpointError as error:
                    faults.append(str(error).partition("; ")[0])
                    continue
                if header.get("update") == str(update) and "averaged" not in header:
                    return tensors, header
        said = f" ({'; '.join(faults)})" if faults else ""
        raise CheckpointError(f"the weights of update {update:,} are in no file of this run{said}")

    @staticmethod
    def _update_of(path: Path) -> int:
        """The update of a whole weights file, else 0."""
        try:
            return int(read_weights(path)[1].get("update", "0"))
        except (CheckpointError, ValueError):
            return 0

    def prune(self, progress: Progress) -> None:
        """Remove validated weights that `progress` no longer names."""
        wanted = {self.at(update) for update in progress.recent}
        for path in self.checkpoints.glob("update-*.safetensors"):
            if path not in wanted:
                path.unlink()

    def _header(self, update: int, metrics: Mapping[str, float]) -> dict[str, str]:
        measured = {f"valid_{name}": repr(value) for name, value in metrics.items()}
        return {**self.metadata, "update": str(update), "metric": self.config.metric, **measured}
