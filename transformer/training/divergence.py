"""The ways in which training fails, told apart from slow learning by numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from .config import TrainConfig
from .history import Line, Past, last_rise, level_of, read_past
from .interruption import Interrupted
from .progress import Progress
from .ranks import Ranks

T = TypeVar("T")

# The classes of a failure (forensics.py tells them apart).
NEVER_STARTED, COLLAPSED = "never started", "collapsed"
EXPLODED, OVERFLOW, DATA, UNCLEAR = "exploded", "overflow", "data", "unclear"

RISEN = 2.0  # times the nll of a model that knows nothing: what has come to this has exploded
FAR = 100.0  # times the same: an explosion that stays is not waited for
LINES = 3  # log lines that show that a loss stays where it is


class Diverged(Exception):
    """Training has failed: a result, not a crash. The message says how, at which update, rate and loss.

    `update` is the first known to be wrong (of a stall the one at which it was called), `rate` its learning
    rate; `kind` the class and `batch` the description of the batch, where they are plain. `measured`: a
    validation told of it, so that no batch of the training has to do with it.
    """

    def __init__(
        self,
        message: str,
        update: int,
        rate: float,
        kind: str = "",
        batch: Mapping[str, Any] | None = None,
        measured: bool = False,
    ) -> None:
        super().__init__(message)
        self.update, self.rate, self.kind, self.batch = update, rate, kind, batch
        self.measured = measured


def together(ranks: Ranks, find: Callable[[], T]) -> T:
    """What `find` returns on the chief; a Diverged or Interrupted that it raises is raised on every rank.

    Collective. What it returns is plain data, as `Ranks.decide` has it.
    """
    if ranks.size == 1:
        return find()

    def told() -> dict[str, Any]:
        try:
            return {"found": find()}
        except Interrupted:
            return {"interrupted": True}
        except Diverged as raised:
            parts = raised.update, raised.rate, raised.kind, raised.batch, raised.measured
            return {"diverged": [str(raised), *parts]}

    what = ranks.decide(told)
    if "diverged" in what:
        raise Diverged(*what["diverged"])
    if "interrupted" in what:
        raise Interrupted
    return cast(T, what["found"])


def stop_broken(update: int, rate: float, loss: float) -> NoReturn:
    """Raise Diverged for `update`, the first whose loss or gradient norm was not finite."""
    message = (
        f"loss or gradient norm was not finite at update {update:,}"
        f" (learning rate {rate:.3g}, mean loss since the last log line {loss:.4g})"
    )
    raise Diverged(message, update, rate)


def stop_if_not_finite(metrics: Mapping[str, float], update: int, rate: float) -> None:
    """Raise Diverged when a validation measured infinity or NaN.

    Perplexity does not count: it is exp(nll), and beyond the largest number where an nll of 710 is not.
    """
    measured = {name: value for name, value in metrics.items() if name != "perplexity"}
    wrong = [f"{name} {value}" for name, value in measured.items() if not math.isfinite(value)]
    if wrong:
        message = f"validation at update {update:,} is not finite: {', '.join(wrong)}"
        raise Diverged(message, update, rate, measured=True)


def stop_if_stalled(
    nll: float, unigram_loss: float | None, progress: Progress, config: TrainConfig, metrics_path: Path
) -> None:
    """Raise Diverged when the loss has stayed at the unigram level or above it.

    A log window has learned something when its unsmoothed nll per token is at most `stall_level` (0.95) times
    the entropy of the training targets' token distribution: no model that ignores source and context gets
    below that entropy. The run has diverged when no window has learned anything for `stall_updates` (1000)
    updates, not before twice the warm-up. So a model that never leaves that level is caught (it never
    started), one that falls back to it (it collapsed), and one whose loss is RISEN times that of a model that
    knows nothing (it exploded). The last is caught in a fifth of the updates, of at least three log lines,
    when the loss is FAR above and has not halved since its peak: rises to 76 times were seen to come back as
    the rate decayed, so less than FAR is waited for. `metrics_path` has the line of this update already.
    It is for a run that would go on: of one that ends there is `stop_if_lost`.
    """
    if unigram_loss is None or not config.stall_updates:
        return
    if nll <= config.stall_level * unigram_loss:
        progress.learned = progress.update
        return
    stalled = progress.update - progress.learned
    due = stalled >= config.stall_updates and progress.update >= 2 * config.warmup
    if not due and nll <= FAR * unigram_loss:
        return
    past = read_past(metrics_path)
    level = level_of(past, unigram_loss)
    if due or _far_above(past, level, config.stall_updates / 5):
        message = (
            f"at update {progress.update:,} the training nll {nll:.3f} has been above"
            f" {config.stall_level:g} times the unigram level ({unigram_loss:.3f} nats) for {stalled:,}"
            f" updates (learning rate {past.lines[-1].rate:.3g})"
        )
        raise _failed(message, past, level, progress)


def stop_if_lost(unigram_loss: float | None, progress: Progress, metrics_path: Path) -> None:
    """Raise Diverged when a run has come to its end RISEN times above the unigram level or higher.

    So it is when the nll of its last LINES log lines is. What ends below that is a result, however slow it
    was: its loss says how far it has come, and there is nothing left to stop.
    """
    if unigram_loss is None:
        return
    past = read_past(metrics_path)
    last = past.lines[-LINES:]
    if len(last) == LINES and all(line.nll > RISEN * unigram_loss for line in last):
        message = (
            f"at its end, update {progress.update:,}, the training nll is {last[-1].nll:.4g}, and on the last"
            f" {LINES} log lines it was above {RISEN:g} times the unigram level ({unigram_loss:.3f} nats)"
        )
        raise _failed(message, past, level_of(past, unigram_loss), progress)


def _failed(message: str, past: Past, level: float, progress: Progress) -> Diverged:
    """The failure of a run whose nll stays where it is: exploded, if that is RISEN above `level`."""
    found: Line = past.lines[-1]
    kind = COLLAPSED if progress.learned else NEVER_STARTED
    if rise := last_rise(past, RISEN * level):
        found, kind = rise, EXPLODED
    return Diverged(message, found.update, found.rate, kind)


def _far_above(past: Past, level: float, updates: float) -> bool:
    """Has the nll been FAR above for so many updates, and does it not come back?"""
    rise = last_rise(past, FAR * level)
    if rise is None:
        return False
    above = [line for line in past.lines if line.update >= rise.update]
    return (
        len(above) >= LINES
        and above[-1].update - rise.update >= updates
        and above[-1].nll >= max(line.nll for line in above) / 2
    )
