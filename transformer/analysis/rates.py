"""The largest learning rate that trains: the rate rises until training fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Annotated, Literal, final

from pydantic import Field

from ..core.configuration import Count, Float, NonNegative, Positive, choice
from ..core.errors import ConfigError, Problem
from ..core.signature import Doc
from ..training.config import TrainConfig
from ..training.optimizers import OPTIMIZERS, make_optimizer
from .failing import (
    BY_HEART,
    LEARNED,
    MEMORISED,
    NEVER_LEARNED,
    REACHED_THE_TOP,
    SMOOTH,
    Watch,
    exponential_ramp,
    linear_ramp,
)
from .finding import Finding
from .interval import known as finite
from .rates_figure import draw
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build
from .steps import descend, unigram_entropy


@dataclass(frozen=True)
class Ramp:
    """How one run went. `rate` is that of the update before the failure; the last one's where none came.

    `lowest`: of the medians of five losses in a row, outside of excursions; None where there is none.
    `learned`: was that ever below 0.95 of the unigram level? Only then is there a largest rate.
    """

    arm: str
    seed: int
    rate: float
    update: int
    ended: str
    broke_at: int | None  # the first update whose loss is part of the failure
    learned: bool
    lowest: float | None
    rates: list[float]
    losses: list[float]

    @property
    def failed(self) -> bool:
        return self.broke_at is not None


@PROBES.register(
    "max-lr",
    title="Largest learning rate that trains",
    equation="the rate at the update before training fails, while it rises to `top`",
    paper="Chen and Wei 2026, arXiv 2601.19895: linear from 0 to 0.05 in 5000 updates",
    note="Wants fresh batches of real text, 200 if no number is given. No warm-up, no clipping. A faster ramp"
    " reaches higher rates: compare arms, not ramps.",
)
@final
class MaxRate(Probe):
    """The rate rises over `steps` updates; its value at the update before training fails, for each seed.

    Failing is what `Watch` says of the training loss, with the entropy of the batches' target tokens for its
    level. A run that reaches the top without failing is a lower bound, written >=, and so is one that learns
    the batches by heart, after which nothing is left that could fail: there should be batches enough. One
    that never gets below 0.95 of the level has learned nothing at any rate of this ramp: it has no largest,
    whether it failed or not. Where the first update of all breaks it, < is written before the ramp's first
    rate.

    The paper's ramp is linear, from 0 to 0.05 in 5000 updates. In few updates a linear one passes over the
    small rates before anything is learned; so by default the rate grows by one factor at every update.
    """

    batches = 200

    def __init__(
        self,
        *,
        top: Annotated[Positive, Doc("rate at the end of the ramp")] = 1.0,
        steps: Annotated[Count, Doc("updates of the ramp")] = 400,
        ramp: Annotated[Literal["linear", "exponential"], Doc("how the rate rises")] = "exponential",
        bottom: Annotated[Positive, Doc("where an exponential ramp starts")] = 1e-5,
        optimizer: Annotated[choice(OPTIMIZERS), Doc("which update rule")] = "adam",  # type: ignore[valid-type]
        clip: Annotated[NonNegative, Doc("largest global gradient norm; 0 = no clipping")] = 0.0,
        window: Annotated[Count, Doc("updates in a row above the bar that make a failure")] = 20,
        multiple: Annotated[
            Float,
            Field(gt=1),
            Doc("of the first loss, or of the unigram level: the bar before anything is learned"),
        ] = 1.5,
        share: Annotated[
            Float, Field(gt=0, lt=1), Doc("share of what was gained on the unigram level that may be lost")
        ] = 0.5,
    ) -> None:
        problems = []
        if ramp == "exponential" and bottom > top:
            problems.append(Problem("bottom", f"the ramp would fall from {bottom:g} to top, {top:g}"))
        if multiple <= 1:
            problems.append(Problem("multiple", f"{multiple:g} times the first loss is no more than that"))
        if window > steps:
            message = f"{window} updates in a row do not fit into {steps} steps: no failure could be seen"
            problems.append(Problem("window", message, hint="give more steps or a shorter window"))
        if problems:
            raise ConfigError(problems)
        self.rates = linear_ramp(top, steps) if ramp == "linear" else exponential_ramp(bottom, top, steps)
        self.ramp, self.optimizer, self.clip, self.top = ramp, optimizer, clip, top
        self.window, self.multiple, self.share = window, multiple, share

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        level = unigram_entropy(batches)
        ramps = [self._ramp(arm, seed, batches, sizes, level, say) for arm in arms for seed in seeds]
        by_arm = {arm.label: [ramp for ramp in ramps if ramp.arm == arm.label] for arm in arms}
        rows = [[r.arm, r.seed, _bound(r), r.update, r.ended, r.lowest] for r in ramps]
        return Finding(
            "max-lr",
            ["arm", "seed", "largest rate", "update", "ended", "lowest median"],
            rows,
            ["arm", "median rate", "lowest", "highest", "trained", "failed", "how"],
            [_summary(label, runs) for label, runs in by_arm.items()],
            self._words(by_arm, level, len(batches)),
            {
                "unigram_level": level,
                "rates": self.rates,
                "curves": {f"{r.arm} seed {r.seed}": r.losses for r in ramps},
                "definition": " ".join((Watch.__doc__ or "").split()),
            },
            partial(draw, by_arm, level),
        )

    def _ramp(
        self, arm: Arm, seed: int, batches: list[Batch], sizes: tuple[int, int], level: float, say: Say
    ) -> Ramp:
        model = build(arm, sizes, seed, batches[0])
        rule = make_optimizer(
            model, TrainConfig.model_validate({"optimizer": self.optimizer, "lr": self.top})
        )
        watch = Watch(level, self.window, self.multiple, self.share)
        failure = None
        for step in descend(model, batches, rule, self.rates, self.clip):
            failure = watch.see(step.loss, step.gradient_norm)
            if failure or watch.memorised:
                break
        last = max(failure.update - 1, 1) if failure else len(watch.losses)
        ended = failure.kind if failure else _unfailed(watch)
        rate = self.rates[last - 1]
        say(f"{arm.label}, seed {seed}: {ended}, rate {rate:.3g}{', nothing learned' * (not watch.learned)}")
        return Ramp(
            arm.label,
            seed,
            rate,
            last,
            ended,
            failure.update if failure else None,
            watch.learned,
            finite(watch.best),
            self.rates,
            watch.losses,
        )

    def _words(self, by_arm: dict[str, list[Ramp]], level: float, count: int) -> list[str]:
        middles = {label: _middle(runs) for label, runs in by_arm.items()}
        known = sorted((rate, label) for label, rate in middles.items() if rate is not None)
        words = [
            f"The rate of the update before training failed, {self.ramp} ramp to {self.top:g} in"
            f" {len(self.rates)} updates on {count} batches; unigram level {level:.3f} nats.",
            f"Failed: not finite; {self.window} losses in a row above {self.multiple:g} times the first; or,"
            f" once below {LEARNED:g} of the unigram level, {self.share:g} of what was gained lost for"
            f" {self.window} updates. A loss counts as reached by the median of {SMOOTH} in a row: one easy"
            " batch is no progress.",
        ]
        if len(known) > 1:
            factors = [
                f"{b} takes {'at least ' if _open(by_arm[b]) else ''}{y / x:.2g} times the rate of {a}"
                for (x, a), (y, b) in pairwise(known)
                if not _open(by_arm[a])
            ]
            words += [f"By medians: {'; '.join(factors)}."] if factors else []
        ends = {run.ended for runs in by_arm.values() for run in runs}
        if REACHED_THE_TOP in ends:
            words.append(">= marks runs that reached the top without failing: a higher probe.top would tell.")
        if BY_HEART in ends:
            words.append(
                f">= marks runs that learned the batches by heart, a loss below {MEMORISED:g} of the unigram"
                f" level: where nothing is left to learn no failure shows. Give more than {count} batches of"
                " real text."
            )
        idle = {label: sum(not run.learned for run in runs) for label, runs in by_arm.items()}
        if any(idle.values()):
            who = ", ".join(f"{label} {n} of {len(by_arm[label])}" for label, n in idle.items() if n)
            words.append(
                f"No median of {SMOOTH} losses below {LEARNED:g} of the unigram level: {who}. These"
                " runs trained at no rate and count in no median; try more steps, more batches or a lower"
                " probe.bottom."
            )
        return words


def _unfailed(watch: Watch) -> str:
    if watch.memorised:
        return BY_HEART
    return REACHED_THE_TOP if watch.learned else NEVER_LEARNED


def _bound(ramp: Ramp) -> float | str | None:
    if not ramp.learned:
        return f"<{ramp.rates[0]:.4g}" if ramp.broke_at == 2 else None
    return ramp.rate if ramp.failed else f">={ramp.rate:.4g}"


def _middle(runs: Sequence[Ramp]) -> float | None:
    rates = [run.rate for run in runs if run.learned]
    return median(rates) if rates else None


def _open(runs: Sequence[Ramp]) -> bool:
    """Is the median a lower bound? So where half of the runs that learned anything, or more, did not fail."""
    known = [run for run in runs if run.learned]
    return sum(not run.failed for run in known) * 2 >= len(known)


def _summary(label: str, runs: Sequence[Ramp]) -> list[object]:
    ends = Counter(run.ended for run in runs)
    how = ", ".join(f"{kind} {n}" for kind, n in ends.items())
    known = [run for run in runs if run.learned]
    trained, failed = (f"{n} of {len(runs)}" for n in (len(known), sum(run.failed for run in runs)))
    if not known:
        return [label, None, None, None, trained, failed, how]
    ordered = sorted(known, key=lambda run: run.rate)
    middle = median(run.rate for run in known)
    return [
        label,
        f">={middle:.4g}" if _open(runs) else middle,
        *map(_bound, (ordered[0], ordered[-1])),
        trained,
        failed,
        how,
    ]
