"""What a run has behind it: counters, sums since the last log line, and clocks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from .ranks import Ranks

Count: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 62)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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

    update: Count = 0
    epoch: Annotated[Count, Field(ge=1)] = 1
    batch: Count = 0
    target_tokens: Count = 0
    seconds: Seconds = 0.0  # since the start, resumed parts and validation counted
    training_seconds: Seconds = 0.0  # of that, spent on updates
    validated: Count = 0  # update of the last validation
    waited: Count = 0  # validations in a row without a new best, for patience
    best: tuple[float, float] | None = None  # score of the best validation, higher is better
    best_update: Count = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    learned: Count = 0  # last logged update whose loss was below the unigram level
    recent: list[Count] = field(default_factory=list)  # updates whose validated weights are on disk

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """What `state_dict` gave. ValueError for a value that no run comes to, KeyError if one is missing."""
        found = {}
        for name, kind in get_type_hints(cls, include_extras=True).items():
            try:
                found[name] = TypeAdapter(kind).validate_python(state[name], strict=True)
            except ValidationError:
                raise ValueError(f"{name} = {state[name]!r:.60}") from None
        return cls(**found)

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

    `broken` is the first update whose loss or gradient norm was not finite, 0 if there was none; `bad` is
    `Passes.bad` of that update. No state with such an update is saved, so it is not part of one.
    """

    SUMS = ("loss", "nll", "norm", "largest_norm", "clipped", "broken")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.sums = torch.zeros(len(self.SUMS), device=self.device)
        self.bad = torch.zeros((), dtype=torch.int64, device=self.device)
        self.tokens = self.updates = 0
        self.seconds = 0.0

    def add(
        self, update: int, tokens: int, loss: Tensor, nll: Tensor, norm: Tensor, clip: float, bad: Tensor
    ) -> None:
        loss_sum, nll_sum, norm_sum, largest, clipped, broken = self.sums.unbind()
        known = torch.isfinite(loss) & torch.isfinite(norm) | (broken > 0)
        self.bad = torch.where(known, self.bad, bad)
        self.sums = torch.stack(
            (
                loss_sum + loss,
                nll_sum + nll,
                norm_sum + norm,
                torch.maximum(largest, norm),
                clipped + (norm > clip if clip else 0),
                torch.where(known, broken, update),
            )
        )
        self.tokens += tokens
        self.updates += 1

    def read(self) -> dict[str, float]:
        """The sums as numbers."""
        return dict(zip(self.SUMS, self.sums.tolist(), strict=True))

    def offender(self, ranks: Ranks) -> int:
        """The first micro-batch of `broken`, from 1, whose loss was not finite on some rank. Collective.

        0, or one more than there are, if that is not known.
        """
        (least,) = ranks.largest(-int(self.bad))
        return -least

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
        sums = state["sums"]
        if sums.shape != self.sums.shape or not sums.is_floating_point():
            raise ValueError(f"sums of shape {tuple(sums.shape)} in {sums.dtype}")
        self.sums, self.seconds = sums.to(self.device), float(state["seconds"])
        self.tokens, self.updates = int(state["tokens"]), int(state["updates"])


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
