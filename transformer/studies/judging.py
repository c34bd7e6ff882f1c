"""Compare two settings over their seeds and judge the difference, by rules that the report prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .groups import TO_TARGET, Group
from .metrics import LR_RANGE, higher_is_better
from .rules import FEWEST
from .statistics import Mean, Paired, mean_of, paired, sign_test, split_chance

ALPHA = 0.05
MOST_DIGITS = 9  # of a difference

REPRODUCED, NOT_REPRODUCED, MIXED, NOT_TESTABLE = "reproduced", "not reproduced", "mixed", "not testable"


@dataclass
class Comparison:
    """`this` against `that` at one setting, over the seeds both have.

    `gain` is how much better this is, so positive is better whatever the metric. `lean` is 1 where this is
    surely better by divergence or the sign test leans to it, -1 where that is, 0 where neither.
    """

    setting: str
    this: Group
    that: Group
    metric: str
    margin: float = 0.0
    seeds: list[int] = field(default_factory=list)
    scores: tuple[dict[int, float], dict[int, float]] = ({}, {})
    failed: tuple[int, int] = (0, 0)
    signs: tuple[int, int] = (0, 0)  # seeds at which this is better, and worse, by more than the margin
    bounds: tuple[bool, bool] = (False, False)  # is a score of this, of that, an upper bound?
    tested: Paired | None = None
    p: float | None = None
    adjusted: float | None = None  # Holm's
    lean: int = 0
    verdict: str = NOT_TESTABLE
    why: str = ""

    @property
    def gain(self) -> Mean | None:
        return self.tested.difference if self.tested else None

    @property
    def all_failed(self) -> bool:
        return self.failed == (len(self.seeds), len(self.seeds))

    @property
    def clean_split(self) -> bool:
        """One failed with every seed, the other with none."""
        return bool(self.seeds) and set(self.failed) == {0, len(self.seeds)}

    def counts(self) -> str:
        """`diverged 3 of 3 against 0 of 3`."""
        verb = {TO_TARGET: "missed the target", LR_RANGE: "worked at no rate"}.get(self.metric, "diverged")
        return f"{verb} {self.failed[0]} of {len(self.seeds)} against {self.failed[1]} of {len(self.seeds)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for table.json."""
        gain, scores = self.gain, [{str(s): v for s, v in held.items()} for held in self.scores]
        return {
            "setting": self.setting,
            "metric": self.metric,
            "seeds": self.seeds,
            "this": {**dict(self.this.values), "scores": scores[0], "failed": self.failed[0]},
            "that": {**dict(self.that.values), "scores": scores[1], "failed": self.failed[1]},
            "gain": None if gain is None else gain.mean,
            "interval": None if gain is None or gain.low is None else [gain.low, gain.high],
            "p": self.p,
            "p_holm": self.adjusted,
            "cohen_dz": self.tested.effect if self.tested else None,
            "verdict": self.verdict,
            "why": self.why,
        }


def compare(setting: str, this: Group, that: Group, metric: str, margin: float = 0.0) -> Comparison:
    """The numbers of one comparison, not yet judged."""
    found = Comparison(setting, this, that, metric, margin)
    scores, failed = [g.scores(metric) for g in (this, that)], [g.fell_short(metric) for g in (this, that)]
    seeds = (set(scores[0]) | set(failed[0])) & (set(scores[1]) | set(failed[1]))
    found.seeds = sorted(seeds)
    ours, theirs = ({s: v for s, v in held.items() if s in seeds} for held in scores)
    found.scores = ours, theirs
    found.bounds = (
        any(s in ours for s in this.bounded(metric)),
        any(s in theirs for s in that.bounded(metric)),
    )
    found.failed = len(seeds.intersection(failed[0])), len(seeds.intersection(failed[1]))
    if higher_is_better(metric):
        found.tested = paired(ours, theirs)
    else:
        found.tested = paired(theirs, ours)
    found.signs = wins, losses = _signs(found)
    if any(found.failed) and not found.all_failed:
        found.lean = (wins > losses) - (wins < losses)
    if len(seeds) >= FEWEST and not found.all_failed:
        found.p = _chance(found)
    return found


def _signs(c: Comparison) -> tuple[int, int]:
    """Seeds at which this is better, and worse, by more than the margin; what failed is worse by any."""
    side = 1 if higher_is_better(c.metric) else -1
    ours, theirs = ([side * held[s] if s in held else -math.inf for s in c.seeds] for held in c.scores)
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]  # where both failed NaN, which is neither
    return sum(gain > c.margin for gain in gains), sum(gain < -c.margin for gain in gains)


def _chance(c: Comparison) -> float | None:
    """The p of the test that fits how many failed."""
    if c.clean_split:
        return split_chance(len(c.seeds))
    return sign_test(*c.signs) if any(c.failed) or c.tested is None else c.tested.p


def judge(expect: str, c: Comparison) -> tuple[str, str]:
    """(verdict, reason in words) of one comparison, by `rules.RULES`."""
    count = len(c.seeds)
    if not count:
        return NOT_TESTABLE, "no seed has a result in both that can be compared"
    if c.all_failed:
        return NOT_TESTABLE, f"{c.counts()}: nothing to compare"
    if c.p is None:
        few = f"{count} seed{'s' if count > 1 else ''} in common: fewer than {FEWEST} are too few"
        return NOT_TESTABLE, f"{c.counts()}; {few}" if any(c.failed) else few
    p = c.p if c.adjusted is None else c.adjusted
    result = f"significant ({p_words(p)})" if p < ALPHA else f"not significant ({p_words(p)})"
    if any(c.failed):
        return _failures(expect, c, p, result)
    assert c.tested is not None
    if c.tested.identical:
        held = expect in ("same", "no worse", "no better")
        return (REPRODUCED if held else NOT_REPRODUCED), "identical with every seed, not significant (p = 1)"
    gain = c.tested.difference
    low, high = (gain.mean if bound is None else bound for bound in (gain.low, gain.high))
    if c.tested.steady:
        result = f"the same difference with every seed, by the sign test {result}"
        if p >= ALPHA:
            return NOT_TESTABLE, f"{result}, and so few seeds cannot be"
    if expect in ("better", "worse", "differs"):
        return _difference(expect, c.margin, low, high, p < ALPHA, result)
    return _equality(expect, c.margin, low, high, result)


def _failures(expect: str, c: Comparison, p: float, result: str) -> tuple[str, str]:
    """Where some run diverged: a clean split, or the sign test."""
    if c.clean_split:
        told = f"{c.counts()} (by chance with a probability of at most {p:.2g})"
        if p < ALPHA:
            return _decided(expect, c.lean), told
        return NOT_TESTABLE, f"{told}: so many settings at once take more seeds"
    wins, losses = c.signs
    beyond = f" by more than {c.margin:g}" if c.margin else ""
    told = f"{c.counts()}; {wins} better and {losses} worse{beyond}, by the sign test {result}"
    if p < ALPHA:
        return _decided(expect, c.lean), told
    if sign_test(wins + losses, 0) >= ALPHA or not min(wins, losses):
        return NOT_TESTABLE, f"{told}, and so few seeds cannot be"
    return NOT_TESTABLE, f"{told}: the seeds do not decide"


def _difference(
    expect: str, margin: float, low: float, high: float, significant: bool, result: str
) -> tuple[str, str]:
    """Claims that there is a difference."""
    above, below = low > margin, high < -margin
    if significant and {"better": above, "worse": below}.get(expect, above or below):
        return REPRODUCED, result
    told = f"{expect} by more than {margin:g}" if margin else expect
    if expect == "differs":
        left_out = margin and -margin < low and high < margin
        told = f"a difference beyond {margin:g}"
    else:
        left_out = high < margin if expect == "better" else low > -margin
        if significant and (high < 0 if expect == "better" else low > 0):
            return NOT_REPRODUCED, f"{result}, the other way round"
    if left_out:
        return NOT_REPRODUCED, f"{result}; {told} is ruled out"
    if significant and margin:
        return (
            NOT_TESTABLE,
            f"{result}, but not surely beyond the margin of {margin:g}: the seeds do not decide",
        )
    return NOT_TESTABLE, f"{result}: the seeds do not decide"


def _equality(expect: str, margin: float, low: float, high: float, result: str) -> tuple[str, str]:
    """Claims that there is none, or none in one direction."""
    within = {"same": -margin < low and high < margin, "no worse": low > -margin, "no better": high < margin}
    beyond = {"same": low > margin or high < -margin, "no worse": high < -margin, "no better": low > margin}
    told = {
        "same": f"a difference beyond {margin:g}",
        "no worse": f"worse by more than {margin:g}",
        "no better": f"better by more than {margin:g}",
    }[expect]
    if within[expect]:
        return REPRODUCED, f"{result}; {told} is ruled out"
    if beyond[expect]:
        return NOT_REPRODUCED, f"{result}; {told}, with the whole interval"
    if not margin:
        return NOT_TESTABLE, f"{result}; without a margin that does not show equality"
    return NOT_TESTABLE, f"{result}; {told} is neither shown nor ruled out: the seeds do not decide"


def _decided(expect: str, side: int) -> str:
    """The verdict where this is surely better (1) or worse (-1) than that, by no stated amount."""
    held = {"better": side > 0, "worse": side < 0, "no worse": side > 0, "no better": side < 0}
    return REPRODUCED if held.get(expect, expect == "differs") else NOT_REPRODUCED


def sentence(c: Comparison) -> str:
    """`rate 1e-3: 2.971 against 3.066, 0.095 better (95 % interval 0.05 to 0.14), significant (p = 0.02)`."""
    parts, digits = [], digits_for(c)
    ours, theirs = (mean_of(list(held.values())) for held in c.scores)
    if ours is not None and theirs is not None:
        means = zip((ours.mean, theirs.mean), c.bounds, strict=True)
        parts.append(" against ".join(f"{'≤ ' if bound else ''}{mean:,.{digits}f}" for mean, bound in means))
    gain = c.gain
    if gain is not None and gain.mean and not any(c.failed):
        side, sign = ("better", 1) if gain.mean > 0 else ("worse", -1)
        bounds = ""
        if gain.low is not None and gain.high is not None:
            low, high = sorted((sign * gain.low, sign * gain.high))
            bounds = f" (95 % interval {low:,.{digits}f} to {high:,.{digits}f})"
        parts.append(f"{abs(gain.mean):,.{digits}f} {side}{bounds}")
    if c.tested is not None and c.tested.effect is not None and not any(c.failed):
        effect = c.tested.effect
        parts.append(
            f"d_z = {effect:.1f}" if abs(effect) < 20 else f"d_z beyond {math.copysign(20, effect):g}"
        )
    text = ", ".join([*parts, c.why])
    return f"{c.setting}: {text}" if c.setting else text


def digits_for(c: Comparison) -> int:
    """Decimals that show two digits of the difference and one of each bound; a loss has three at least."""
    usual = 0 if c.metric == TO_TARGET else 2 if higher_is_better(c.metric) else 3
    if c.gain is None or any(c.failed):
        return usual
    first = [-math.floor(math.log10(abs(v))) if v else 0 for v in (c.gain.mean, c.gain.low, c.gain.high)]
    return max(usual, min(MOST_DIGITS, max(first[0] + 1, *first)))


def p_words(p: float) -> str:
    """`p < 0.001`, `p = 0.031`, `p = 0.42`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def few_names(names: Sequence[str], most: int = 6) -> str:
    """`a; b; c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more
