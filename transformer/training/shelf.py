"""The weights a run keeps: the best, the last few validated ones, and model.safetensors, the run's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..core.rundir import CHECKPOINTS, WEIGHTS
from ..model.transformer import Transformer
from .checkpoint import average_checkpoints, load_model_weights, read_weights, set_weights, write_weights
from .config import TrainConfig
from .progress import Progress


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

    def reopen(self, progress: Progress) -> None:
        """Make the best the run's model again: a run that had ended may have put an average there."""
        if progress.best_update:
            tensors, header = read_weights(self.best)
            if header["update"] == str(progress.best_update):  # else a crash came before the state was saved
                write_weights(self.model, tensors, header)
                self.metrics = progress.best_metrics

    def average(self, progress: Progress) -> tuple[dict[str, Tensor], list[int]]:
        """Mean of the last `config.average` validated weights, and their updates; empty for fewer than 2."""
        updates = progress.recent[-self.config.average :] if self.config.average else []
        if len(updates) < 2:
            return {}, []
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
        load_model_weights(self.model, model)

    def prune(self, progress: Progress) -> None:
        """Remove validated weights that `progress` no longer names."""
        wanted = {self.at(update) for update in progress.recent}
        for path in self.checkpoints.glob("update-*.safetensors"):
            if path not in wanted:
                path.unlink()

    def _header(self, update: int, metrics: Mapping[str, float]) -> dict[str, str]:
        measured = {f"valid_{name}": repr(value) for name, value in metrics.items()}
        return {**self.metadata, "update": str(update), "metric": self.config.metric, **measured}
