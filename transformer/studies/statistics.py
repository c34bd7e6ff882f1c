"""What seeds can and cannot show: intervals, paired tests, rates of failure, sensitivity to a rate.

Everything here is a function of numbers alone, and the order of seeds never matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..analysis.interval import LEVEL, t_inside, t_quantile

ROUNDING = 1e-12  # of the largest number: what sums of float64 differ by


@dataclass(frozen=True)
class Mean:
    """The mean of n seeds, with the interval mean +- t s / sqrt(n); of one seed it has no bounds."""

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.high is None else self.high - self.mean


def mean_of(values: Sequence[float], level: float = LEVEL) -> Mean | None:
    """Mean, sample deviation (n - 1) and Student's interval; None of nothing."""
    values = sorted(values)  # so that the order of seeds does not change the last bit
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, None, None, None, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    half = t_quantile(count - 1, level) * deviation / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, deviation, count)


@dataclass(frozen=True)
class Paired:
    """Differences within seeds: their mean and interval, the paired t test's p and Cohen's d_z.

    d_z = mean / deviation of the differences (Cohen 1988, the effect size of a paired design; it is larger
    than the d of independent groups where seeds move both arms alike). None where it is not defined.
    `steady`: the differences are all alike but for rounding. Seeds so alike give no interval, and p is the
    sign test's: a t test would call any such difference certain.
    """

    difference: Mean
    p: float | None
    effect: float | None
    steady: bool = False

    @property
    def identical(self) -> bool:
        """Is every difference zero, but for rounding?"""
        return self.difference.mean == 0 and not self.difference.deviation


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """First - second over the seeds both have; None where they share none."""
    seeds = sorted(first.keys() & second.keys())
    rounding = ROUNDING * max((abs(held[seed]) for held in (first, second) for seed in seeds), default=0.0)
    differences = [first[seed] - second[seed] for seed in seeds]
    difference = mean_of([0.0 if abs(d) <= rounding else d for d in differences])
    if difference is None:
        return None
    if difference.deviation is None:
        return Paired(difference, None, None)
    if difference.deviation <= rounding:
        p = sign_test(difference.count, 0) if difference.mean else 1.0
        return Paired(replace(difference, low=None, high=None), p, None, steady=True)
    t = difference.mean / (difference.deviation / math.sqrt(difference.count))
    return Paired(difference, 1 - t_inside(t, difference.count - 1), difference.mean / difference.deviation)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of a fair coin that falls at least as unevenly; ties are left out before."""
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2.0**count
    return min(1.0, 2 * tail)


def split_chance(seeds: int) -> float:
    """At most 2 / 4^n: the chance that of two alike arms one fails with all n seeds and the other with none.

    Alike means: given the seed, both runs fail independently of each other and with the same probability q.
    Then this fails and that does not with q (1 - q) <= 1/4 at each seed, and its mean is no larger whatever
    the seeds' q are; so with n seeds either order has at most 1 / 4^n.
    """
    return 2.0 / 4.0**seeds


def holm(p_values: Sequence[float]) -> list[float]:
    """Of p values of m questions asked at once: sorted, the k-th smallest times m - k + 1, made monotone.

    Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def wilson(events: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a rate: all q whose distance from events / count is within z standard errors of q.

    Never empty and never beyond 0 and 1, also for 0 of n and n of n. Source: Wilson 1927.
    """
    if not count:
        return 0.0, 1.0
    z, rate = _normal_quantile(level), events / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    low = 0.0 if events == 0 else max(0.0, centre - half)
    return low, 1.0 if events == count else min(1.0, centre + half)


def _normal_quantile(level: float) -> float:
    """The z with P(|Z| < z) = level."""
    low, high = 0.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < level else (low, middle)
    return high


def sensitivity(losses: Mapping[float, float | None], initial: float) -> float | None:
    """Mean over log(rate) of min(loss, loss at initialisation) - best loss; 0 is: every rate does as well.

    `losses` is rate -> final loss, None for a diverged run, which counts as the loss at initialisation. The
    mean is that of the curve drawn straight between the rates on a log axis. None below two rates.
    Source: Wortsman et al. 2023, arXiv 2309.14322.
    """
    if len(losses) < 2:
        return None
    points = [
        (math.log(rate), initial if loss is None else min(loss, initial))
        for rate, loss in sorted(losses.items())
    ]
    best = min(loss for _, loss in points)
    area = math.fsum((x1 - x0) * ((y0 + y1) / 2 - best) for (x0, y0), (x1, y1) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def workable_decades(losses: Mapping[float, float | None], target: float, initial: float) -> float:
    """How many decades of the rate, within those tried, have a loss of at most `target`.

    `losses` is rate -> loss, None for a diverged run, which counts as `initial`, as does any loss above it;
    between the rates the loss is taken to be straight over log(rate).
    """
    assert initial > target
    points = [
        (math.log10(rate), initial if loss is None else min(loss, initial))
        for rate, loss in sorted(losses.items())
    ]
    decades = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        low, high = sorted((y0, y1))
        if low <= target:
            decades += (x1 - x0) * (1.0 if high <= target else (target - low) / (high - low))
    return decades


def updates_to(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The first update at which the curve, straight between its points, is at the target or below; else None.

    Where no finite point above the target comes before, as of a curve that begins below it, this is the
    update of that point: an upper bound (`reached_at_once`).
    """
    found = _crossing(curve, target)
    return None if found is None else found[0]


def reached_at_once(curve: Sequence[tuple[int, float]], target: float) -> bool:
    """Is `updates_to` an upper bound only?"""
    found = _crossing(curve, target)
    return found is not None and found[1]


def _crossing(curve: Sequence[tuple[int, float]], target: float) -> tuple[float, bool] | None:
    """(update, is it a bound)."""
    before: tuple[float, float] | None = None
    for update, loss in sorted(curve):
        if not math.isfinite(loss):
            before = None
        elif loss <= target:
            if before is None:
                return float(update), True
            return before[0] + (update - before[0]) * (before[1] - target) / (before[1] - loss), False
        else:
            before = (update, loss)
    return None
