"""When a run ends, and where its data stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from ..model.transformer import Transformer
from .config import TrainConfig
from .progress import Progress
from .ranks import ALONE, Ranks


class Stream(Protocol):
    """Batches in an order that is a function of the epoch, which counts from 1."""

    def batches_in(self, epoch: int) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


def fixed_by(config: TrainConfig, model: Transformer, stream: Stream, seed: int) -> dict[str, Any]:
    """What a resumed run must have in common with the run it goes on with."""
    shape = {f"model.{name}": value for name, value in model.config.model_dump(mode="json").items()}
    return {**config.fixed(), **shape, "seed": seed, "batches in epoch 1": stream.batches_in(1)}


def updates_of(stream: Stream, progress: Progress, accumulate: int) -> Iterator[list[Any]]:
    """Lists of `accumulate` micro-batches, from the position in `progress`, which moves before each is given.

    An update never spans two epochs: the last of an epoch takes what is left.
    """
    while True:
        micro_batches: list[Any] = []
        left = stream.batches_in(progress.epoch) - progress.batch
        for batch in stream.epoch(progress.epoch, progress.batch) if left else ():
            micro_batches.append(batch)
            left -= 1
            if len(micro_batches) == accumulate or not left:
                progress.batch += len(micro_batches)
                yield micro_batches
                micro_batches = []
        assert left == 0, "the stream gave another number of batches than it said"
        progress.epoch, progress.batch = progress.epoch + 1, 0


class Limits:
    """The limits of `config` on a stream: updates, epochs, minutes and patience, whichever comes first.

    Of several ranks the first one's clock counts.
    """

    def __init__(self, config: TrainConfig, stream: Stream, ranks: Ranks = ALONE) -> None:
        self.config, self.stream, self.ranks = config, stream, ranks

    def total_updates(self) -> int | None:
        """The last update by the limits that count updates; None when only minutes limit the run."""
        config = self.config
        if config.epochs is None:
            return config.updates
        batches = (self.stream.batches_in(epoch) for epoch in range(1, config.epochs + 1))
        total = sum(-(-count // config.accumulate) for count in batches)
        return total if config.updates is None else min(total, config.updates)

    def reached(self, progress: Progress) -> str:
        """Which limit is reached, in words; empty while there is none. Collective."""
        reason = self._reached(progress) if self.ranks.chief else ""
        (ended,) = self.ranks.largest(bool(reason))
        return (reason or "rank 0 says so") if ended else ""

    def _reached(self, progress: Progress) -> str:
        config = self.config
        if config.updates is not None and progress.update >= config.updates:
            return f"train.updates: {progress.update:,} updates done"
        if config.epochs is not None:
            ended = progress.batch >= self.stream.batches_in(progress.epoch)
            if progress.epoch > config.epochs or (progress.epoch == config.epochs and ended):
                return f"train.epochs: {config.epochs:,} epochs done"
        if config.minutes is not None and progress.seconds >= 60 * config.minutes:
            return f"train.minutes: {config.minutes:g} minutes are over"
        if config.patience and progress.waited >= config.patience:
            return f"train.patience: {progress.waited} validations without a better {config.metric}"
        return ""
