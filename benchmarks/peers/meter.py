"""The clock that runs inside each measured process; it needs nothing but Python, and torch to train.

The clock of training is a hook of torch after every `Optimizer.step`, so it reads the same thing in every
system; tokens are counted by the adapter where the system hands its targets to the loss.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .shapes import BEAMS, SHAPES, STEPS, Shape


class Measured(BaseException):
    """The last update is done: leave the training loop, whatever the system would do next."""


def filled(ids: Any, pad: int) -> tuple[int, int]:
    """How many of a tensor's places hold no padding, and how many there are."""
    return int((ids != pad).sum()), ids.numel()


class Meter:
    """Counts updates and target tokens; `warm` updates pass before the clock starts."""

    def __init__(self, warm: int, timed: int) -> None:
        assert warm > 0
        assert timed > 0
        self.warm, self.timed = warm, timed
        self.times: list[float] = []
        self.first_update_at = 0.0
        self.parameters = 0  # that the optimizer moves
        self.counts: list[Counter[str]] = [Counter()]  # of each update, the last one under way
        self.losses: list[float] = []

    def count(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        """A micro-batch has so many tokens that are not padding, in so many places; targets with EOS."""
        for side, (tokens, places) in (("source", source), ("target", target)):
            self.counts[-1].update({side: int(tokens), f"{side} places": int(places)})

    def loss(self, value: float) -> None:
        """Nats a target token of the update under way."""
        self.losses.append(float(value))

    def updated(self, optimizer: Any = None, *_: object) -> None:
        """The weights have moved. Raises Measured when that was the last time."""
        self.times.append(time.monotonic())
        if len(self.times) == 1:
            self.first_update_at = time.time()
            groups = optimizer.param_groups if optimizer else []
            self.parameters = sum(weight.numel() for group in groups for weight in group["params"])
        if not self.counts[-1]["target"]:
            raise RuntimeError(f"update {len(self.times)} came without a target token: the count is broken")
        if len(self.times) == self.warm + self.timed:
            raise Measured
        self.counts.append(Counter())

    @contextmanager
    def training(self) -> Iterator[None]:
        """A context in which a system trains; it is over as soon as all updates are measured."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        hook = register_optimizer_step_post_hook(self.updated)
        try:
            with suppress(Measured):
                yield
        finally:
            hook.remove()
        if len(self.times) != self.warm + self.timed:
            raise RuntimeError(f"training ended after {len(self.times)} updates")

    def result(self) -> dict[str, Any]:
        seconds = self.times[-1] - self.times[self.warm - 1]
        timed = sum(self.counts[self.warm :], Counter())
        few = max(1, len(self.losses) // 4)
        first, last = (statistics.fmean(part) for part in (self.losses[:few], self.losses[-few:]))
        if not last < first:
            raise RuntimeError(f"the loss did not fall: {first:.3f} at the beginning, {last:.3f} at the end")
        return {
            "first_update_at": self.first_update_at,
            "tokens_per_second": timed["target"] / seconds,
            "source_padding": 1 - timed["source"] / timed["source places"],
            "target_padding": 1 - timed["target"] / timed["target places"],
            "tokens_per_update": timed["target"] / self.timed,
            "updates_timed": self.timed,
            "parameters": self.parameters,
            "losses": [first, last],
            "peak_bytes": peak_bytes(),
        }


def translated(
    translate: Callable[[int], Sequence[Sequence[object]]], warm: Callable[[int], object], sentences: int
) -> dict[str, Any]:
    """Time `translate(beam)`, which returns each translation's pieces, one for a step, after `warm(beam)`."""
    ready = time.time()
    result: dict[str, Any] = {"ready_at": ready}
    for beam in BEAMS:
        warm(beam)
        start = time.monotonic()
        found = translate(beam)
        seconds = time.monotonic() - start
        lengths = [len(pieces) for pieces in found]
        if lengths != [STEPS] * sentences:
            raise RuntimeError(
                f"{sentences} translations of {STEPS} pieces were asked for; {len(lengths)} came,"
                f" of {min(lengths, default=0)} to {max(lengths, default=0)}"
            )
        result[f"sentences_per_second_beam_{beam}"] = sentences / seconds
    return {**result, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Most memory this process has held. A child's counts no less than its parent had: parents stay small."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Task(argparse.Namespace):
    """What an adapter is asked to do."""

    task: str
    shape: str
    data: Path
    model: Path
    threads: int
    updates: int
    out: Path
    variant: str

    @property
    def sizes(self) -> Shape:
        return SHAPES[self.shape]

    def meter(self) -> Meter:
        return Meter(self.sizes.warm if self.updates == 0 else min(self.updates, 3), self.timed)

    @property
    def timed(self) -> int:
        return self.updates or self.sizes.timed

    @property
    def total(self) -> int:
        """Updates a system is told to make: more than are measured, so that none is its last."""
        return 1000


def adapter(
    *,
    model: Callable[[Task], None],
    translate: Callable[[Task], dict[str, Any]],
    train: Callable[[Task], dict[str, Any]] | None = None,
) -> None:
    """The command line of an adapter: `model` makes weights to translate with, once; the others are timed."""
    tasks = {"train": train, "translate": translate}
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["model", *(name for name, run in tasks.items() if run)])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--updates", type=int, default=0, help="timed updates (default: the shape's)")
    parser.add_argument("--variant", default="")
    parser.add_argument("--out", type=Path, required=True)
    task = parser.parse_args(namespace=Task())
    if task.task == "model":
        model(task)
        result: dict[str, Any] = {}
    else:
        run = tasks[task.task]
        assert run is not None
        result = run(task)
    task.out.write_text(json.dumps(result), encoding="utf-8")
