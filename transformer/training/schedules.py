"""Learning rate as a function of the update: a warm-up ramp, then one of the decays registered here.

Updates count from 1, and the rate of update t is set before update t. Warm-up is a factor of its own:
`warmup` updates (0 is legal with every schedule) rise linearly from `warmup_init_lr` to `lr`, which is
reached exactly at update `warmup`; from then on the decay rules. So `lr` is the true peak, and update 1 is at
the peak when there is no warm-up. Every rate from update 1 to the horizon is finite and above 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, final

from ..core.errors import ConfigError, Problem
from ..core.registry import Registry

if TYPE_CHECKING:
    from .config import TrainConfig

SCHEDULES: Registry[type[Schedule]] = Registry("schedule")

_SMALLEST = 1e-30  # many drops may not underflow to a rate of 0


class Schedule(ABC):
    """Warm-up and decay of one run. Pure in the update; a plateau also in what `observe` was told.

    `horizon` is the last update of the run where it is known. `needs_horizon` and `options` (the keys of
    `train` that the decay reads besides lr, warmup and warmup_init_lr) are facts for checks and help texts.
    """

    needs_horizon: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: TrainConfig, horizon: int | None) -> None:
        self.config = config
        self.lr, self.warmup, self.floor = config.lr, config.warmup, config.floor
        self.horizon = horizon

    @property
    def first(self) -> int:
        """The first update at the peak rate: the last of the warm-up, or update 1 without one."""
        return max(self.warmup, 1)

    def learning_rate(self, update: int) -> float:
        """The rate of an update >= 1."""
        assert update >= 1
        if update < self.warmup:
            start = self.config.warmup_init_lr
            return start + (self.lr - start) * update / self.warmup
        return max(self.lr * self.decay(update), self.floor, _SMALLEST)

    @abstractmethod
    def decay(self, update: int) -> float:
        """The share of the peak rate at an update >= `first`; 1 at `first`."""

    def observe(self, score: float) -> bool:
        """Hear of a validation (higher is better); True when the rate was lowered because of it."""
        return False

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """ValueError if it is none of this schedule."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps nothing, and finds {', '.join(map(str, state))}")

    def progress(self, update: int) -> float:
        """0 at the peak, 1 at the update after the last: the share of the decay that is behind."""
        assert self.horizon is not None
        if self.horizon < self.first:
            return 0.0
        return (min(update, self.horizon) - self.first) / (self.horizon + 1 - self.first)


@SCHEDULES.register("constant", title="Constant", equation="lr", note="Reads no further option.")
@final
class Constant(Schedule):
    """lr."""

    def decay(self, update: int) -> float:
        return 1.0


@SCHEDULES.register(
    "inverse_sqrt",
    title="Inverse square root, coupled to the warm-up",
    equation="lr sqrt(max(warmup, 1) / t)",
    paper="fairseq's inverse_sqrt; shape of Vaswani et al. 2017, eq. 3",
    note="Warm-up 0 means lr / sqrt(t), which starves the rate as well:"
    " compare warm-ups with inverse_sqrt_decoupled.",
)
@final
class InverseSqrt(Schedule):
    """lr sqrt(max(warmup, 1) / t).

    The decay starts where the warm-up ends, so its length is also the decay's timescale: with warm-up 1 (or
    0, the same here) the rate at update 4000 is 63 times lower than with warm-up 4000. "Post-LN without
    warm-up" under this schedule (Xiong et al. 2020, section 3.2) is one hot instant and then a tiny rate, two
    things at once; `inverse_sqrt_decoupled` takes them apart.
    """

    options = ("floor",)

    def decay(self, update: int) -> float:
        return math.sqrt(self.first / update)


@SCHEDULES.register(
    "inverse_sqrt_decoupled",
    title="Inverse square root with a timescale of its own",
    equation="lr sqrt(T0 / max(t, T0))",
    note="T0 is train.timescale, at least the warm-up. The rate after T0 is the same for every warm-up.",
)
@final
class InverseSqrtDecoupled(Schedule):
    """lr sqrt(T0 / max(t, T0)): the peak is held until T0, whatever the warm-up.

    T0 = `timescale` and warmup = T0 give the coupled form. T-Fixup's lr sqrt(T0 / (T0 + t)) (Huang et al.
    2020) has the same tail; this one keeps `lr` the true peak.
    """

    options = ("timescale", "floor")

    def decay(self, update: int) -> float:
        return math.sqrt(self.config.timescale / max(update, self.config.timescale))


@SCHEDULES.register(
    "linear",
    title="Linear decay",
    equation="floor + (lr - floor) (1 - progress)",
    note="Needs train.updates or train.epochs. With floor 0 the rate would be 0 one update after the last.",
)
@final
class Linear(Schedule):
    """floor + (lr - floor) (1 - p), with p = (t - first) / (horizon + 1 - first)."""

    needs_horizon = True
    options = ("floor",)

    def decay(self, update: int) -> float:
        low = self.floor / self.lr
        return low + (1 - low) * (1 - self.progress(update))


@SCHEDULES.register(
    "cosine",
    title="Cosine decay",
    equation="floor + (lr - floor) (1 + cos(pi progress)) / 2",
    paper="Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5 (no restarts)",
    note="Needs train.updates or train.epochs. With floor 0 the rate would be 0 one update after the last.",
)
@final
class Cosine(Schedule):
    """floor + (lr - floor) (1 + cos(pi p)) / 2, with p = (t - first) / (horizon + 1 - first)."""

    needs_horizon = True
    options = ("floor",)

    def decay(self, update: int) -> float:
        low = self.floor / self.lr
        # sin(x)^2 = (1 - cos(2x)) / 2, without its cancellation: the last rate of a long run stays above 0.
        return low + (1 - low) * math.sin(math.pi / 2 * (1 - self.progress(update))) ** 2


@SCHEDULES.register(
    "step",
    title="Step drops",
    equation="lr factor^(drops passed)",
    paper="Xiong et al. 2020, arXiv 2002.04745, section 4: factor 0.1 at epoch 8 of 15",
    note="train.drops: below 1 a share of the run, otherwise an update, after which the rate drops.",
)
@final
class Step(Schedule):
    """lr factor^k, k the number of `drops` d with t > d."""

    options = ("drops", "factor", "floor")

    def __init__(self, config: TrainConfig, horizon: int | None) -> None:
        super().__init__(config, horizon)
        if horizon is None and any(drop < 1 for drop in config.drops):
            raise ConfigError(
                "train.drops: a share of the run needs the number of updates;"
                " give train.updates or train.epochs, or write the drops as updates"
            )
        self.drops = [drop * horizon if horizon and drop < 1 else drop for drop in config.drops]

    def decay(self, update: int) -> float:
        return self.config.factor ** sum(update > drop for drop in self.drops)


@SCHEDULES.register(
    "plateau",
    title="Drops when validation stalls",
    equation="lr factor^(stalls)",
    note="A stall is train.plateau_patience validations in a row without a better train.metric.",
)
@final
class Plateau(Schedule):
    """lr factor^k, k raised by each run of `plateau_patience` validations without a new best."""

    options = ("plateau_patience", "factor", "floor")

    def __init__(self, config: TrainConfig, horizon: int | None) -> None:
        super().__init__(config, horizon)
        self.best, self.waited, self.lowered = -math.inf, 0, 0

    def decay(self, update: int) -> float:
        return self.config.factor**self.lowered

    def observe(self, score: float) -> bool:
        if score > self.best:
            self.best, self.waited = score, 0
            return False
        self.waited += 1
        if self.waited < self.config.plateau_patience or self.lr * self.decay(1) <= self.floor:
            return False
        self.waited, self.lowered = 0, self.lowered + 1
        return True

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "waited": self.waited, "lowered": self.lowered}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best = float(state["best"])
        self.waited, self.lowered = int(state["waited"]), int(state["lowered"])


def make_schedule(config: TrainConfig, total_updates: int | None = None) -> Schedule:
    """The schedule of a configuration; no model needed.

    `total_updates` is the last update if the run goes to its end: `config.updates`, or what `config.epochs`
    come to. Raises ConfigError when the schedule needs it and it is not known, or the warm-up takes it all.
    """
    kind = SCHEDULES[config.schedule]
    horizon = config.updates if total_updates is None else total_updates
    if kind.needs_horizon and horizon is None:
        raise ConfigError(
            f"train.schedule: {config.schedule} needs the number of updates;"
            " give train.updates or train.epochs"
        )
    if kind.needs_horizon and horizon is not None and config.warmup >= horizon:
        message = f"warmup {config.warmup} leaves no update of {horizon} for the {config.schedule} decay"
        raise ConfigError([Problem("train.warmup", message)])
    return kind(config, horizon)
