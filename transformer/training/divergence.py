"""The two ways in which training fails, told apart from slow learning by numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from .config import TrainConfig
from .progress import Progress


class Diverged(Exception):
    """Training has failed: a result, not a crash. The message says how, at which update, rate and loss."""


def stop_broken(update: int, rate: float, loss: float) -> NoReturn:
    """Raise Diverged for `update`, the first whose loss or gradient norm was not finite."""
    raise Diverged(
        f"loss or gradient norm was not finite at update {update:,}"
        f" (learning rate {rate:.3g}, mean loss since the last log line {loss:.4g})"
    )


def stop_if_not_finite(metrics: Mapping[str, float], update: int) -> None:
    """Raise Diverged when a validation measured infinity or NaN."""
    wrong = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise Diverged(f"validation at update {update:,} is not finite: {', '.join(wrong)}")


def stop_if_stalled(
    nll: float, unigram_loss: float | None, progress: Progress, config: TrainConfig, rate: float
) -> None:
    """Raise Diverged when the loss has stayed at the unigram level.

    A log window has learned something when its unsmoothed nll per token is at most `stall_level` (0.95) times
    the entropy of the training targets' token distribution: no model that ignores source and context gets
    below that entropy. The run has diverged when no window has learned anything for `stall_updates` (1000)
    updates, not before twice the warm-up. So a model that never leaves that level is caught, and one that
    falls back to it.
    """
    if unigram_loss is None or not config.stall_updates:
        return
    if nll <= config.stall_level * unigram_loss:
        progress.learned = progress.update
    stalled = progress.update - progress.learned
    if stalled >= config.stall_updates and progress.update >= 2 * config.warmup:
        raise Diverged(
            f"at update {progress.update:,} the training nll {nll:.3f} has been at the unigram level"
            f" ({unigram_loss:.3f} nats) for {stalled:,} updates (learning rate {rate:.3g})"
        )
