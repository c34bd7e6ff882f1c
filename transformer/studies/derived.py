"""Numbers that several runs of a seed give together: the range of workable rates, a difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from .config import RATE
from .groups import LOSS, Group, label, plain, split_by
from .metrics import LR_RANGE
from .outcomes import Outcome
from .statistics import ROUNDING, sensitivity, workable_decades


@dataclass(frozen=True)
class Derived(Group):
    """A setting without runs of its own: `made` has the numbers, metric -> seed -> value.

    Seeds in `fallen` are worse than any number, as diverged runs are; of those in `absent` nothing is known.
    """

    made: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    fallen: Sequence[int] = ()
    absent: Sequence[int] = ()

    @property
    def ended(self) -> int:
        return len(self.made.get(LOSS, {}))

    def _measured(self, metric: str) -> dict[int, float]:
        return {seed: v for seed, v in self.made.get(metric, {}).items() if seed not in self.fallen}

    def fell_short(self, metric: str) -> list[int]:
        return list(self.fallen) if metric in self.made else []

    def unmeasured(self, metric: str) -> list[int]:
        return list(self.absent)

    def bounded(self, metric: str) -> list[int]:
        return []


def initial_losses(runs: Iterable[Outcome]) -> list[float]:
    """The first training loss of each run, where it is finite."""
    starts = (run.train_curve[0][1] for run in runs if run.train_curve)
    return [start for start in starts if math.isfinite(start)]


def _by_rate(groups: Sequence[Group]) -> dict[float, Group]:
    return {float(plain(group.values[RATE])): group for group in groups if RATE in group.values}


def _seedwise(
    groups: Sequence[Group],
    rates: Iterable[float],
    number: Callable[[dict[float, float | None]], float | None],
) -> dict[int, float]:
    """`number` of rate -> loss (None: diverged), for each seed that has a result at all of `rates`."""
    held = _by_rate(groups)
    if not held or any(rate not in held for rate in rates):
        return {}
    losses = {rate: group.scores(LOSS) for rate, group in held.items()}
    ended = [{*scores, *held[rate].fell_short(LOSS)} for rate, scores in losses.items()]
    found = {
        seed: number({rate: scores.get(seed) for rate, scores in losses.items()})
        for seed in sorted(set.intersection(*ended))
    }
    return {seed: value for seed, value in found.items() if value is not None}


def lowest_start(groups: Iterable[Group]) -> float | None:
    """The lowest loss at initialisation of all runs: without norms a model may begin anywhere above it."""
    return min(initial_losses(run for group in groups for run in group.runs.values()), default=None)


def seed_sensitivities(groups: Sequence[Group], initial: float | None) -> dict[int, float]:
    """The sensitivity to the rate of each seed that has a result at every rate (`statistics.sensitivity`).

    `groups` differ in the rate alone; `initial` is the loss that stands for all above it. A seed that learned
    nothing at any rate has no sensitivity: it would look as if no rate were worse than another.
    """
    if initial is None:
        return {}

    def of(losses: dict[float, float | None]) -> float | None:
        learned = any(loss is not None and loss < initial for loss in losses.values())
        return sensitivity(losses, initial) if learned else None

    return _seedwise(groups, (), of)


def ranges(groups: Sequence[Group], target: float) -> tuple[list[Group], list[str]]:
    """The groups without their rate, each with the range of its workable rates; and what limits it.

    All are measured by the same rates, and a diverged run counts as the lowest loss that any run began with.
    A seed without any workable rate has fallen.
    """
    rates = sorted(_by_rate(groups))
    start = lowest_start(groups)
    keys = sorted({key for group in groups for key in group.values} - {RATE})
    found: list[Group] = []
    notes = []
    for values, members in split_by(groups, keys):
        name, made = label(values), {}
        if start is not None and start > target:
            made = _seedwise(members, rates, partial(workable_decades, target=target, initial=start))
        elif start is not None:
            notes.append(f"a run began at a loss of {start:.3g}, below the target: no rate is told apart")
        runs = {seed for group in members for seed in group.runs}
        for rate, word in ((rates[0], "lowest"), (rates[-1], "highest")):
            group = _by_rate(members).get(rate)
            if group is not None and any(group.scores(LOSS).get(s, math.inf) <= target for s in made):
                notes.append(f"the range of {name} reaches the {word} rate tried: it may be wider")
        losses = {s: min(g.scores(LOSS).get(s, math.inf) for g in members) for s in made}
        fallen = [seed for seed, loss in losses.items() if loss > target]
        numbers = {LR_RANGE: made, LOSS: losses}
        found.append(Derived(values, {}, numbers, fallen, sorted(runs - made.keys())))
    return found, list(dict.fromkeys(notes))


def both_everywhere(this: Group, that: Group, rates: Sequence[float]) -> list[int]:
    """Seeds at which both sides work at all rates: how much further each would go is not known."""
    whole = math.log10(max(rates) / min(rates)) * (1 - ROUNDING)
    ours, theirs = this.scores(LR_RANGE), that.scores(LR_RANGE)
    return [seed for seed, decades in ours.items() if decades >= whole and theirs.get(seed, 0.0) >= whole]


def without(group: Group, seeds: Sequence[int]) -> Group:
    """The group as if nothing were known of these seeds."""
    if not isinstance(group, Derived):
        return replace(group, runs={seed: run for seed, run in group.runs.items() if seed not in seeds})
    made = {m: {s: v for s, v in held.items() if s not in seeds} for m, held in group.made.items()}
    return replace(group, made=made, absent=sorted({*group.absent, *seeds}))


def difference(this: Group, that: Group, metric: str) -> Group:
    """What `this` has more of the metric than `that`, seed by seed.

    A seed at which this alone failed has fallen; where that failed, or either is not known or a bound, it is
    absent.
    """
    bounds = {*this.bounded(metric), *that.bounded(metric)}
    ours, theirs = this.scores(metric), that.scores(metric)
    made = {
        seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs and seed not in bounds
    }
    fallen = [seed for seed in this.fell_short(metric) if seed in theirs]
    absent = sorted({*this.runs, *that.runs} - made.keys() - {*fallen})
    return Derived(this.values, {}, {metric: made}, fallen, absent)
