"""Training, timed: the product's own updates on its own batches."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..training.limits import updates_of
from ..training.passes import Observer
from ..training.progress import Progress
from ..training.trainer import Trainer
from .ceilings import synchronize
from .process import age


@dataclass(frozen=True)
class TrainingSpeed:
    """`rounds`: target tokens/s without padding, each over the same updates; `batches`: their micro-batches.

    `padding`: share of the positions, source and target. `first_update`: seconds from the start of the
    process to the end of its first update. `parts`: share of the time, measured in a round of its own that
    waits for the device after each part.
    """

    rounds: Sequence[float]
    updates: int
    tokens_per_update: float
    padding: tuple[float, float]
    first_update: float | None
    parts: Mapping[str, float]
    batches: Sequence[Any]


def measure_training(trainer: Trainer, updates: int, rounds: int, warm: int = 3) -> TrainingSpeed:
    """Train `warm` updates that do not count, then `rounds` times the next `updates`, and once for the parts.

    Each takes the micro-batches that it takes in a run (`train.accumulate`), in the order of the trainer's
    stream. The model trains on: it is not the same afterwards.
    """
    device = trainer.device
    trainer.model.train()
    stream = _updates(trainer)
    trainer.step(next(stream))
    synchronize(device)
    first = age()
    for _ in range(warm):
        trainer.step(next(stream))
    timed = [next(stream) for _ in range(updates)]
    batches = [batch for micro_batches in timed for batch in micro_batches]
    tokens = sum(batch.target_tokens for batch in batches)
    speeds = []
    for _ in range(rounds):
        synchronize(device)
        begin = time.perf_counter()
        for micro_batches in timed:
            trainer.step(micro_batches)
        synchronize(device)
        speeds.append(tokens / (time.perf_counter() - begin))
    return TrainingSpeed(
        speeds, updates, tokens / updates, _padding(batches), first, _shares(trainer, updates), batches
    )


class Clock(Observer):
    """Seconds of each part of the updates it looks on at; it waits for the device at each border."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()
        self.within = False  # an update, after its first micro-batch

    def lap(self, part: str) -> None:
        """What has passed since the last border was `part`."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    @contextmanager
    def forward(self, batch: Any) -> Iterator[None]:
        self.lap("backward" if self.within else "data")
        self.within = True
        yield
        self.lap("loss")

    def decoded(self) -> None:
        self.lap("forward")

    def gradients(self) -> None:
        self.lap("backward")
        self.within = False

    def updated(self) -> None:
        self.lap("optimizer")


def _shares(trainer: Trainer, updates: int) -> dict[str, float]:
    """The parts of `updates` fresh updates, their batches made meanwhile; they add up to 1."""
    before, trainer.observer = trainer.observer, (clock := Clock(trainer.device))
    stream = _updates(trainer)
    clock.lap("start")
    for _ in range(updates):
        trainer.step(next(stream))
    trainer.observer = before
    del clock.seconds["start"]
    total = sum(clock.seconds.values())
    return {part: seconds / total for part, seconds in clock.seconds.items()}


def _updates(trainer: Trainer) -> Iterator[list[Any]]:
    """The micro-batches of each update from the first epoch on, as a run takes them."""
    return updates_of(trainer.stream, Progress(), trainer.config.accumulate)


def _padding(batches: Sequence[Any]) -> tuple[float, float]:
    source = sum(batch.source_tokens for batch in batches) / sum(batch.source.numel() for batch in batches)
    target = sum(batch.target_tokens for batch in batches) / sum(
        batch.target_out.numel() for batch in batches
    )
    return 1 - source, 1 - target
