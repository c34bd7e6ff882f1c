"""What a run has behind it: counters, sums since the last log line, clocks and signals."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from types import FrameType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .ranks import ALONE, Ranks

LISTEN = 0.5  # seconds between two looks for a signal of another rank
CARRIER = signal.SIGURG  # one that means nothing to a process by default

Status = Literal["completed", "diverged", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and why in words.

    `metrics` is the validation of the weights in model.safetensors, empty if there was none; `averaged` the
    number of checkpoints these weights are the mean of, or 0.
    """

    status: Status
    reason: str
    updates: int
    epochs: int
    seconds: float
    target_tokens: int
    target_tokens_per_second: float
    best_update: int
    averaged: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    divergence: Mapping[str, Any] | None = None  # where, when and why (forensics.py)


@dataclass
class Progress:
    """Everything countable that a resumed run must know. `epoch` counts from 1; `batch` is its next one."""

    update: int = 0
    epoch: int = 1
    batch: int = 0
    target_tokens: int = 0
    seconds: float = 0.0  # since the start, resumed parts and validation counted
    training_seconds: float = 0.0  # of that, spent on updates
    validated: int = 0  # update of the last validation
    waited: int = 0  # validations in a row without a new best, for patience
    best: tuple[float, float] | None = None  # score of the best validation, higher is better
    best_update: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    learned: int = 0  # last logged update whose loss was below the unigram level
    recent: list[int] = field(default_factory=list)  # updates whose validated weights are on disk

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        return cls(**{f.name: state[f.name] for f in fields(cls)})

    def as_logged(self) -> dict[str, float]:
        """What a log line says of how far the run is."""
        return {"target_tokens": self.target_tokens, "seconds": self.seconds}

    def judged(self, score: tuple[float, float], metrics: dict[str, float]) -> None:
        """Note a validation of the last update, higher scores being better."""
        self.validated = self.update
        self.waited += 1
        if self.best is None or score > self.best:
            self.best, self.best_update, self.best_metrics = score, self.update, metrics
            self.waited = 0

    def outcome(
        self,
        status: Status,
        reason: str,
        averaged: int,
        metrics: Mapping[str, float],
        divergence: Mapping[str, Any] | None = None,
    ) -> Outcome:
        return Outcome(
            status=status,
            reason=reason,
            updates=self.update,
            epochs=self.epoch,
            seconds=self.seconds,
            target_tokens=self.target_tokens,
            target_tokens_per_second=self.target_tokens / max(self.training_seconds, 1e-9),
            best_update=self.best_update,
            averaged=averaged,
            metrics=dict(metrics),
            divergence=divergence,
        )


class Window:
    """Sums over the updates since the last log line, on the device: reading them is the only synchronisation.

    `broken` is the first update whose loss or gradient norm was not finite, 0 if there was none.
    """

    SUMS = ("loss", "nll", "norm", "largest_norm", "clipped", "broken")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.sums = torch.zeros(len(self.SUMS), device=self.device)
        self.tokens = self.updates = 0
        self.seconds = 0.0

    def add(self, update: int, tokens: int, loss: Tensor, nll: Tensor, norm: Tensor, clip: float) -> None:
        loss_sum, nll_sum, norm_sum, largest, clipped, broken = self.sums.unbind()
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.sums = torch.stack(
            (
                loss_sum + loss,
                nll_sum + nll,
                norm_sum + norm,
                torch.maximum(largest, norm),
                clipped + (norm > clip if clip else 0),
                torch.where(finite | (broken > 0), broken, update),
            )
        )
        self.tokens += tokens
        self.updates += 1

    def read(self) -> dict[str, float]:
        """The sums as numbers."""
        return dict(zip(self.SUMS, self.sums.tolist(), strict=True))

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What was read, a token or an update."""
        tokens, updates = max(self.tokens, 1), max(self.updates, 1)
        return {
            "loss": sums["loss"] / tokens,
            "nll": sums["nll"] / tokens,
            "gradient_norm": sums["norm"] / updates,
            "largest_gradient_norm": sums["largest_norm"],
            "clipped": sums["clipped"] / updates,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self.sums.cpu(),
            "tokens": self.tokens,
            "updates": self.updates,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = state["sums"].to(self.device)
        self.tokens, self.updates, self.seconds = state["tokens"], state["updates"], state["seconds"]


def seed_generators(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does for the CPU and one device, at a hundredth of its time."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Stopwatch:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        elapsed, self.last = now - self.last, now
        return elapsed


class Interrupted(BaseException):
    """A signal has broken off what may be broken off (`Interruption.breaking`)."""


class Interruption:
    """A context in which the first SIGINT or SIGTERM only raises a flag; a second one acts as it did before.

    A signal that was ignored before, as a shell sets SIGINT for what it starts in the background, does on the
    second time what it does by default, since that is what is announced. `name` is the signal's name once
    there was one. The chief of several `ranks` hears of theirs at each vote (`heard`), and while they wait
    for it in `breaking`. Outside the main thread, where Python delivers no signals, it does nothing.
    """

    DEFAULTS: ClassVar[dict[signal.Signals, Any]] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }

    def __init__(self, meanwhile: str = "finishing this update", ranks: Ranks = ALONE) -> None:
        """`meanwhile`: what a signal does not break off, in words."""
        self.name, self.ranks = "", ranks
        self._meanwhile = meanwhile
        self._breaks = ""
        self._before: dict[signal.Signals, Any] = {}

    def heard(self, ranks: Ranks) -> str:
        """The name of a signal that any rank has got so far; empty while there is none. Collective."""
        (number,) = ranks.largest(signal.Signals[self.name] if self.name else 0)
        if number:
            self.name = signal.Signals(number).name
        return self.name if number else ""

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in self.DEFAULTS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def breaking(self, what: str = "the validation") -> Iterator[None]:
        """A context that a signal, also one that came before it, leaves at once by raising `Interrupted`."""
        self._breaks = what
        with self._listening():
            try:
                if self.name:
                    raise Interrupted
                yield
            finally:
                self._breaks = ""

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """A context in which the chief takes a signal that another rank tells of as one of its own.

        It comes to the main thread as CARRIER, which Python only says to have come: another of the signals
        themselves, after the first one, would stop at once.
        """
        main = threading.current_thread() is threading.main_thread()
        if self.ranks.size == 1 or not main:
            yield
            return
        over, words = threading.Event(), list[str]()

        def listen() -> None:
            while not (words or over.wait(LISTEN)):
                words.extend(filter(None, [self.ranks.told()]))
            if words:
                _thread.interrupt_main(CARRIER)

        def hear(number: int, frame: FrameType | None) -> None:
            if words and not self.name:
                self._handle(signal.Signals[words[0]], frame)

        before = signal.signal(CARRIER, hear)
        listener = threading.Thread(target=listen, name="signals of other ranks", daemon=True)
        listener.start()
        try:
            yield
        finally:
            over.set()
            listener.join(LISTEN)  # not for ever: the store may be on a machine that is gone
            signal.signal(CARRIER, signal.SIG_DFL if before is None else before)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self.ranks.tell(self.name)
        what = f"breaking off {self._breaks}" if self._breaks else self._meanwhile
        # The bare descriptor: a handler may run while the log or the progress bar is being written.
        with suppress(OSError):  # nobody need be listening
            os.write(2, f"\n{self.name}: {what}, then saving; once more stops at once\n".encode())
        for each, before in self._before.items():
            signal.signal(each, self.DEFAULTS[each] if before == signal.SIG_IGN else before)
        if self._breaks:
            self._breaks = ""
            raise Interrupted
